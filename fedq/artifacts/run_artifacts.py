"""Writes the artifacts of a run: the log of its rounds, the models, the measured int8 model, and result.json.

Knows experiments and results; not messages. Every figure is measured or counted; none is copied from the config.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fedq.artifacts.client_level import ServerFiles, ServerRecord, with_client_level
from fedq.artifacts.int8_model import quantized_lines, write_int8_model
from fedq.artifacts.publication import write_publication
from fedq.client.state import EVIDENCE
from fedq.config import rules
from fedq.experiment import Experiment
from fedq.experiment.ledgers import ledger_file
from fedq.flower import wire
from fedq.results import Result, RoundLog, RoundRow, save_curves, write_model
from fedq.server import Outcome
from fedq.server.loop import Round
from fedq.server.pruning import zeros
from fedq.server.round_aggregate import Traffic
from fedq.training import state_arrays
from fedq.training.numerics import fingerprint

if TYPE_CHECKING:
    from fedq.privacy import AnyMechanism

PRIVACY_UNIT = dict.fromkeys(("example", "both"), "one training example of one client (add or remove)")
ELSEWHERE = "the clients' ledgers and evidence lie on their own machines, where this server does not see them"
DATA_DEPENDENT = frozenset({"declined", "client_error", "error"})  # refusals that may reveal something about the data
MODEL, INT8_MODEL = "model.safetensors", "model.onnx"


class RunArtifacts:
    """Turns each round into a row, on disk first and then on the screen, and finally writes the result."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        watch: Callable[[RoundRow], None],
        *,
        clients: "ClientFiles | None",
        server: ServerFiles | None = None,
    ) -> None:
        self._experiment, self._folder, self._watch, self._clients = experiment, folder, watch, clients
        self._log = RoundLog(folder / "rounds.jsonl")
        self._rows: list[RoundRow] = []
        self._history: list[RoundRow] = []  # the rows in the log and in the result
        plan = experiment.client_plan
        self._server = None if plan is None or server is None else ServerRecord(experiment, plan, server)
        self._traffic = Traffic()
        self._before = spent_before(experiment)

    def __enter__(self) -> "RunArtifacts":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()

    def round(self, what: Round) -> None:
        """Record a finished round."""
        evaluation, validation = what.scores.evaluation, what.scores.validation
        is_accuracy = self._experiment.trainer.metric.is_accuracy
        counted = self._experiment.counts_after(what.number)
        row = RoundRow(
            round=what.number,
            status=what.status,
            accuracy=evaluation.metric if is_accuracy else None,
            metric_value=evaluation.metric,
            loss=evaluation.loss,
            validation_accuracy=validation.metric if is_accuracy else None,
            train_loss=what.train_loss,
            epsilon=epsilon_after(self._experiment, what.participations, before=self._before, counted=counted),
            bytes_up=what.traffic.up,
            bytes_down=what.traffic.down,
            float32_bytes_up=what.traffic.float32_up,
            float32_bytes_down=what.traffic.float32_down,
            seconds=round(what.seconds, 4),
            clients=len(what.accepted),
            # A second reply, or a reply of a client that was not asked, is rejected, but no client is lost.
            lost=len({r.client for r in what.rejected if r.reason != "unknown_node"} - set(what.accepted)),
            reasons=dict(sorted(Counter(r.reason for r in what.rejected).items())),
            rejected=[{"client": r.client, "reason": r.reason} for r in what.rejected],
            accepted=list(what.accepted),
            clipped=list(what.clipped),
            capped=list(what.capped),
            sparsity=what.sparsity,
        )
        if self._server is not None:
            row = self._server.accounted(row, what)
        public = row if self._server is None else self._server.public(row)
        self._history.append(public)
        self._log.append(public)
        self._rows.append(row)
        self._traffic.add(what.traffic)
        self._watch(public if self._clients is None else row)  # in a simulation the viewer is the server

    def close(self, outcome: Outcome, *, begun: float) -> Result:
        """Write the model, the int8 model, the curves and the result; `begun`: time.monotonic() at the start."""
        e, config = self._experiment, self._experiment.config
        scores = outcome.scores.evaluation
        if scores.metric is None and e.accuracy_source == "server_test" and e.dataset.test is not None:
            evaluation = e.trainer.evaluate(outcome.master, e.dataset.test)
            value: float | None = evaluation.metric
        else:
            value = scores.metric
        e.trainer.load(outcome.master)
        arrays = state_arrays(e.trainer.model)
        write_model(self._folder / MODEL, arrays)
        int8 = write_int8_model(e, self._folder / INT8_MODEL)
        if "error" in int8:  # the trained model is kept anyway
            outcome.status, outcome.reason = "failed", f"the int8 model could not be delivered: {int8['error']}"
        privacy = self._privacy()
        if self._server is not None:
            privacy = with_client_level(privacy, self._server.summary())
        is_accuracy = e.trainer.metric.is_accuracy
        result = Result(
            name=config.name,
            status=outcome.status,
            status_reason=outcome.reason or None,
            rounds=outcome.rounds,
            seed=config.seed,
            accuracy=value if is_accuracy else None,
            accuracy_source=e.accuracy_source if value is not None else "none",
            accuracy_error=outcome.scores.error,
            metric=config.train.metric,
            metric_value=value,
            int8_accuracy=int8.get("value") if is_accuracy else None,
            int8_metric_value=int8.get("value"),
            int8_agreement=int8.get("agreement"),
            int8_ops=int8.get("int8_ops", {}),
            float_ops=int8.get("float_ops", {}),
            int8_speedup=int8.get("speedup"),
            int8_profile=int8.get("profile", {}),
            **privacy,
            reply_fields=self._traffic.fields,
            quantized=quantized_lines(e),
            bytes_up=self._traffic.up,
            bytes_down=self._traffic.down,
            float32_bytes_up=self._traffic.float32_up,
            float32_bytes_down=self._traffic.float32_down,
            model_bytes=(self._folder / MODEL).stat().st_size,
            int8_model_bytes=int8.get("bytes"),
            sparsity=None if e.pruning is None else zeros(arrays, e.pruning.names),
            clients_lost=sum(row.lost for row in self._rows),
            wall_seconds=round(time.monotonic() - begun, 3),
            fingerprint=fingerprint(e.trainer.hardware, autocast=config.train.autocast),
            config_hash=rules.config_hash(config),
            config=rules.identity(config),
            history=self._history,
            arrays=arrays,
            folder=self._folder,
        )
        result.write(self._folder)
        save_curves(result, self._folder / "curves.png")
        write_publication(self._folder, result)
        return result

    def _privacy(self) -> dict[str, Any]:
        """The privacy fields of the result, from the clients' ledgers and evidence if they are on this machine."""
        e = self._experiment
        if e.plan is None:
            return {
                "epsilon": None,
                "delta": None,
                "privacy_unit": None,
                "private": False,
                "privacy_reasons": [],
            }
        if self._clients is None:  # public numbers give the cost of this run alone
            of, spent = "run", max((row.epsilon for row in self._rows if row.epsilon is not None), default=0.0)
            private, reasons = False, [ELSEWHERE, *data_dependent_refusals(self._rows)]
        else:
            of = "ledgers"
            spent, private, reasons = evidence_of(e, self._clients, self._rows, self._traffic.fields)
        return {
            "epsilon": spent,
            "epsilon_of": of,
            "delta": e.plan.delta,
            "privacy_unit": PRIVACY_UNIT[e.config.privacy.unit],
            "private": private,
            "privacy_reasons": reasons,
        }


def data_dependent_refusals(rows: "Sequence[RoundRow]") -> list[str]:
    """Refusals that may reveal something about the data: whether a client's code fails may depend on them."""
    return [f"a refusal ({reason})" for reason in sorted({r for row in rows for r in row.reasons} & DATA_DEPENDENT)]


def evidence_of(
    experiment: Experiment, clients: "ClientFiles", rows: "Sequence[RoundRow]", fields: Sequence[str]
) -> tuple[float, bool, list[str]]:
    """(epsilon, private, reasons why not), from the clients' files."""
    from fedq.privacy import is_private

    accepted = [(client, row.round) for row in rows for client in row.accepted]
    evidence = gather_evidence(experiment, clients, accepted, [*fields, *data_dependent_refusals(rows)])
    return evidence.epsilon, *is_private(evidence)


def epsilon_after(
    experiment: Experiment, participations: int, *, before: "Sequence[AnyMechanism]" = (), counted: bool = False
) -> float | None:
    """Epsilon of a client after `participations` rounds and the spends `before`, from public numbers; None without DP.

    `counted`: the client has also been asked for noisy counts.
    """
    if experiment.plan is None:
        return None
    evaluation = [experiment.plan.evaluation] if counted else []
    spends = [*before, *[experiment.plan.mechanism] * participations, *evaluation]
    if not spends:
        return 0.0
    from fedq.privacy import epsilon

    return epsilon(spends, experiment.plan.delta, accountant=experiment.plan.accountant)


def spent_before(experiment: Experiment) -> "list[AnyMechanism]":
    """The earlier spends of the client that has spent most; [] where each run has its own ledgers."""
    if experiment.plan is None or experiment.config.privacy.ledger is None:
        return []
    from fedq.privacy import Ledger, LedgerError

    most: list[AnyMechanism] = []
    for identity in experiment.identities:
        path = ledger_file(experiment.config, Path(), identity)
        with suppress(LedgerError):  # the client of a ledger that cannot be read refuses to train, and reports it
            if path.exists():
                spent = Ledger(path, access="read").mechanisms()
                most = max(most, spent, key=lambda before: epsilon_after(experiment, 0, before=before) or 0.0)
    return most


@dataclass(frozen=True)
class ClientFiles:
    """The clients' files of one run, if they are on this machine; `run`: the run's name in their ledgers."""

    root: Path  # root / IDENTITY / evidence.jsonl, and ledger.sqlite unless privacy.ledger names another place
    run: str


def _scalars(experiment: Experiment, mechanism: str) -> int:
    """The number of values of a reply that need noise: all trained ones, or the two counts of an evaluation."""
    from fedq.privacy.spend import LAPLACE

    return 2 if mechanism == LAPLACE else experiment.trainer.trained_scalars


def gather_evidence(
    experiment: Experiment, clients: ClientFiles, accepted: list[tuple[str, int]], fields: list[str]
) -> Any:
    """The `RunEvidence` of a run: evidence and ledger row of each participation, from the clients' folders.

    Participations whose reply the server rejected count too, because their updates left the client.
    """
    from fedq.privacy import ClientRound, DPEvidence, Ledger, LedgerError, RunEvidence, Spend
    from fedq.privacy.spend import LAPLACE

    rounds: list[ClientRound] = []
    accounts: dict[str, tuple[float, float]] = {}
    decisions: list[str] = []
    verified = True
    for identity in experiment.identities:
        home = clients.root / identity
        done: list[tuple[int, DPEvidence]] = []  # a client may be asked twice for one round
        if (home / EVIDENCE).exists():
            for line in (home / EVIDENCE).read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, TypeError):  # an incomplete line is no evidence
                    row = json.loads(line)
                    number = row.pop("round")
                    done.append((number, DPEvidence(**row)))
        spends: dict[int, Spend] = {}
        path = ledger_file(experiment.config, home, identity)
        if path.exists():
            try:
                ledger = Ledger(path, access="read")
                ledger.verify()
                spends = {row.id: row.spend for row in ledger.rows()}
                decisions += [f"client {identity}, {said}" for said in ledger.tip().accepted]
                plan = experiment.plans[identity]
                accounts[identity] = (ledger.epsilon(plan.delta, accountant=plan.accountant), plan.target_epsilon)
            except LedgerError:
                verified = False
        for number, evidence in done:
            spend = spends.get(evidence.spend_row_id)
            rounds.append(ClientRound(identity, number, evidence, spend, _scalars(experiment, evidence.mechanism)))
        # A spend of this run without evidence: the client failed or was stopped after the spend.
        proven = {evidence.spend_row_id for _, evidence in done}
        for row_id, spend in spends.items():
            if spend.run == clients.run and row_id not in proven:
                rounds.append(ClientRound(identity, spend.round, None, spend, _scalars(experiment, spend.mechanism)))
        trained = {number for number, evidence in done if evidence.mechanism != LAPLACE}
        unproven = [number for client, number in accepted if client == identity and number not in trained]
        rounds += [ClientRound(identity, number, None, None, experiment.trainer.trained_scalars) for number in unproven]
    return RunEvidence(
        rounds=rounds,
        epsilon=max((spent for spent, _ in accounts.values()), default=0.0),
        target_epsilon=experiment.plan.target_epsilon,
        accounts=accounts,
        ledgers_verified=verified,
        decisions=decisions,
        reply_fields_checked=bool(fields),
        nonpublic_reply_fields=sorted(set(fields) - wire.public_fields(p.name for p in experiment.algorithm.uplink)),
        data_fitted_on_private=experiment.dataset.fitted_on_private_data,
        activation_ranges_observed=experiment.quantized is not None and experiment.quantized.ranges == "observed",
        delta=experiment.plan.delta,
        nominal_examples=experiment.plan.nominal_examples,
        largest_shard=max(map(len, experiment.shards.values()), default=0),
        run=clients.run,
    )
