"""Runs an experiment on the server: handshakes, rounds, artifacts. Knows experiments; not the transport of messages."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from fedq.artifacts.client_level import ServerFiles
from fedq.artifacts.run_artifacts import ClientFiles, RunArtifacts
from fedq.config import public
from fedq.experiment import Experiment, ServerExamples
from fedq.experiment.client_level import client_level_mechanism, sampler
from fedq.flower import wire
from fedq.privacy import (
    AnyMechanism,
    ClientLevelMechanism,
    ClientLevelPlan,
    Declined,
    LedgerError,
    standard_error,
)
from fedq.results import Result, RoundRow
from fedq.server import Roster, RoundAggregate, Rules, run_rounds
from fedq.server.broadcast import Broadcast
from fedq.server.client_level import ClientLevelSum
from fedq.server.loop import Score, Scores
from fedq.server.roster import BudgetSpentError, TooFewClientsError, too_few
from fedq.server.round_aggregate import Rejected, Traffic
from fedq.server.strategy import Strategy


class Link(Protocol):
    """The server's connection to its clients: in this process, over worker processes, or over a network."""

    def meet(self) -> tuple[Roster, Traffic]: ...

    def close(self) -> None: ...

    def gather(
        self,
        round: int,
        broadcast: Broadcast,
        accepted: Mapping[str, int],
        *,
        task: str = wire.TRAIN,
    ) -> RoundAggregate: ...

    def outputs(self, weights: np.ndarray, part: ServerExamples) -> np.ndarray | None:
        """The model's outputs on the server's examples, (n, k); None where only the server's process can compute."""
        ...


def serve(
    experiment: Experiment,
    strategy: Strategy,
    link: Link,
    *,
    folder: Path,
    watch: Callable[[RoundRow], None],
    clients: ClientFiles | None,
) -> Result:
    """Do the handshakes, run all rounds, write and measure the models, and fill the run folder.

    `clients`: the clients' files, if they are on this machine; only then can the result be private. Raises
    TooFewClientsError or BudgetSpentError.
    """
    config, begun, plan = experiment.config, time.monotonic(), experiment.client_plan
    if plan is not None:
        mechanism, home, before = _protection(experiment, plan, folder)
    roster, hello = link.meet()
    roster.keep(experiment.identities)
    present = len(roster.nodes)
    cohort = public.cohort_size(config, clients=present)
    if experiment.claims_privacy:  # never a larger fraction than the one to which the noise is calibrated
        cohort = public.cohort_size(config) * present // config.clients
    if present < config.strategy.min_clients or cohort < 1:
        refused = ", ".join(f"{r.client}: {r.reason}" for r in roster.refused[:5]) or "no answer"
        text = f"{present} of {config.clients} clients answered, too few for a round ({refused})"
        raise too_few(text, roster.refused, lacking=config.strategy.min_clients - present)
    judge = _Judge(experiment, strategy, link, roster)
    draws, kept = sampler(config, plan, list(roster.nodes)), None
    if plan is not None:
        assert isinstance(strategy.aggregation, ClientLevelSum)  # a client-level plan implies it
        strategy.aggregation.protect(mechanism)
        kept = ServerFiles(home, folder.name, draws.source, mechanism.ledger, before)
    with RunArtifacts(experiment, folder, watch, clients=clients, server=kept) as artifacts:
        outcome = run_rounds(
            strategy=strategy,
            sampler=draws,
            master=experiment.initial,
            gather=link.gather,
            score=judge,
            watch=artifacts.round,
            rules=Rules(
                rounds=config.rounds,
                cohort=cohort,
                min_clients=strategy.terms.min_clients,
                due=lambda round: public.evaluation_due(config, round),
                keep=config.strategy.keep,
                greater_is_better=experiment.trainer.metric.greater_is_better,
                ema=config.strategy.ema,
            ),
            hello=hello,
            refused=roster.refused,
        )
        link.close()  # no client trains or spends from here on, so the evidence is complete
        return artifacts.close(outcome, begun=begun)


def _protection(
    experiment: Experiment, plan: ClientLevelPlan, folder: Path
) -> tuple[ClientLevelMechanism, Path, list[AnyMechanism]]:
    """(mechanism of client-level DP, folder of its files, the most that earlier runs spent of one client).

    BudgetSpentError if this run does not fit into the rest of the budget.
    """
    try:
        mechanism, home = client_level_mechanism(experiment.config, plan, folder, experiment.data_name)
        return mechanism, home, mechanism.admit()
    except Declined as declined:
        fix = "take fewer rounds or clients a round, or more noise, or raise privacy.client.target_epsilon"
        raise BudgetSpentError(f"client-level DP: {declined}; {fix}") from None
    except LedgerError as error:
        raise TooFewClientsError(f"no round can be spent: {error}") from None


class _Judge:
    """The evaluator: scores a model on the server's test set, else on the clients, and under DP by noisy counts."""

    def __init__(self, experiment: Experiment, strategy: Strategy, link: Link, roster: Roster) -> None:
        self._experiment, self._strategy, self._link, self._roster = experiment, strategy, link, roster

    def __call__(self, round: int, master: np.ndarray) -> Scores:
        data = self._experiment.dataset
        evaluation, validation, traffic = Score(), Score(), Traffic()
        rejected: list[Rejected] = []
        if self._experiment.accuracy_source == "server_test" and data.test is not None:
            evaluation = self._on_server("test", master)
        elif self._experiment.accuracy_source == "clients":
            try:
                broadcast = self._strategy.snapshot(master, round)
            except ValueError:  # float16 cannot hold this model; the next round reports it
                return Scores()
            total = self._link.gather(round, broadcast, dict.fromkeys(self._roster.nodes, -1), task=wire.EVALUATE)
            evaluation, traffic = Score(total.mean("loss"), total.mean("metric")), total.traffic
            rejected = total.rejected
        elif self._experiment.counts_after(round):
            return self._counted(round, master)
        # Only a model that is chosen by it needs the validation set in each round.
        config = self._experiment.config
        if data.validation is not None and (config.strategy.keep == "best" or round == config.rounds):
            validation = self._on_server("validation", master)
        return Scores(evaluation, validation, traffic, rejected)

    def _on_server(self, part: ServerExamples, master: np.ndarray) -> Score:
        trainer, examples = self._experiment.trainer, self._experiment.examples(part)
        outputs = self._link.outputs(master, part)
        found = trainer.evaluate(master, examples) if outputs is None else trainer.score_outputs(outputs, examples)
        return Score(found.loss, found.metric)

    def _counted(self, round: int, master: np.ndarray) -> Scores:
        """The accuracy of the last model, from the clients' noisy counts. It is measured once."""
        plan = self._experiment.plan
        broadcast = self._strategy.snapshot(master, round)
        total = self._link.gather(round, broadcast, dict.fromkeys(self._roster.nodes, -1), task=wire.EVALUATE)
        right, wrong, clients = total.noisy_counts()
        if right + wrong <= 0:
            return Scores(traffic=total.traffic, rejected=total.rejected)
        share = min(1.0, max(0.0, right / (right + wrong)))
        error = standard_error(right, wrong, clients, plan.evaluation_epsilon)
        return Scores(Score(None, share), Score(), total.traffic, total.rejected, error)
