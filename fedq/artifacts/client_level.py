"""The artifacts of client-level DP: public rows, the server's own log, and the check of the server's evidence.
Knows experiments, the server's ledger and evidence; not messages or the clients' files.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedq.core.durable import append_to_private
from fedq.experiment import Experiment
from fedq.experiment.client_level import EVIDENCE, REPLIES, SERVER_FILES, not_averaged
from fedq.privacy import (
    AnyMechanism,
    ClientLevelEvidence,
    ClientLevelPlan,
    Ledger,
    LedgerError,
    ServerEvidence,
    ServerRound,
    Spend,
    is_client_private,
    spent_by_one_client,
)
from fedq.privacy.client_level import ADJACENCY
from fedq.results import RoundRow
from fedq.server.loop import Round

UNIT = "one client, all its examples in all rounds (counted or not); the server is trusted"
ADVERSARY = {
    "cyclic": "anyone who sees the models, other clients included; the server is trusted",
    "poisson": "anyone who sees the models and not the network, where cohorts show; the server is trusted",
}
# Figures that depend on who answered, and when: no noise covers them, so they stay with the server.
NOT_COVERED = ("clients", "lost", "clients_lost", "bytes_up", "float32_bytes_up", "seconds", "wall_seconds")
NOT_COVERED_IF_SECRET = ("bytes_down", "float32_bytes_down")


@dataclass(frozen=True)
class ServerFiles:
    """The server's own files; `run`: the run's name in the ledger; `cohorts_from`: the random source of cohorts."""

    home: Path
    run: str
    cohorts_from: str
    ledger: Path
    before: "Sequence[AnyMechanism]" = ()  # the most that one client may have spent in earlier runs


class ServerRecord:
    """Collects the rounds of one run under client-level DP."""

    def __init__(self, experiment: Experiment, plan: ClientLevelPlan, files: ServerFiles) -> None:
        self._experiment, self._plan, self._files = experiment, plan, files
        self._rounds: list[Round] = []
        self._asked: Counter[str] = Counter()

    def accounted(self, row: RoundRow, what: Round) -> RoundRow:
        """The row with the epsilon of client-level DP so far, unless example-level DP has set one."""
        if what.number:
            self._rounds.append(what)
            self._asked.update(what.asked)
        if self._experiment.plan is not None:
            return row
        most = max(self._asked.values(), default=0) if self._plan.sampling == "cyclic" else len(self._rounds)
        return replace(row, epsilon=self._plan.epsilon(most, before=self._files.before))

    def public(self, row: RoundRow) -> RoundRow:
        """The row without accepted and rejected clients, which go to the server's own log."""
        said = {key: asdict(row)[key] for key in ("round", "accepted", "rejected")}
        asked = list(self._rounds[-1].asked) if row.round else []
        with append_to_private(self._files.home / REPLIES) as log:
            log.write(json.dumps({**said, "asked": asked}) + "\n")
        return replace(row, accepted=[], rejected=[], reasons={})

    def summary(self) -> dict[str, Any]:
        """The field `client_level` of the result."""
        plan = self._plan
        evidence = server_evidence(self._experiment, plan, self._files, self._rounds)
        private, reasons = is_client_private(evidence)
        return {
            "epsilon": spent_by_one_client(evidence),
            "delta": plan.delta,
            "unit": UNIT,
            "adjacency": ADJACENCY,
            "adversary": ADVERSARY[plan.sampling],
            "sampling": plan.sampling,
            "noise_multiplier": plan.noise_multiplier,
            "clip_norm": plan.clip_norm,
            "clip_quantile": plan.quantile,
            "rounds_charged": plan.charges,
            "other_runs": len({spend.run for spend in evidence.other_runs or ()}),
            "accountant": plan.accountant,
            "not_covered": [*NOT_COVERED, *(NOT_COVERED_IF_SECRET if plan.sampling == "poisson" else ())],
            "private": private,
            "reasons": reasons,
        }


def complete_rows(folder: Path, rows: Sequence[RoundRow]) -> list[RoundRow]:
    """The rows of a run folder, with the accepted and rejected clients of the server's own log, if there is one."""
    path = folder / SERVER_FILES / REPLIES
    if not path.is_file():
        return list(rows)
    said = {line["round"]: line for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    return [_completed(row, said[row.round]) for row in rows]


def _completed(row: RoundRow, said: dict[str, Any]) -> RoundRow:
    reasons = dict(sorted(Counter(r["reason"] for r in said["rejected"]).items()))
    return replace(row, accepted=said["accepted"], rejected=said["rejected"], reasons=reasons)


def with_client_level(privacy: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """The privacy fields of a result with those of client-level DP; private only if both guarantees hold."""
    if privacy["epsilon"] is None:
        return {
            "epsilon": said["epsilon"],
            "delta": said["delta"],
            "privacy_unit": said["unit"],
            "private": said["private"],
            "privacy_reasons": said["reasons"],
            "client_level": said,
        }
    return {
        **privacy,
        "private": privacy["private"] and said["private"],
        "privacy_reasons": [*privacy["privacy_reasons"], *(f"client-level DP: {why}" for why in said["reasons"])],
        "client_level": said,
    }


def server_evidence(
    experiment: Experiment, plan: ClientLevelPlan, files: ServerFiles, rounds: list[Round]
) -> ServerEvidence:
    """The evidence and ledger row of every round, read back from the server's folder."""
    done = _done(files.home / EVIDENCE)
    spends: dict[int, Spend] = {}
    others: list[Spend] | None = None
    verified = False
    decisions: tuple[str, ...] = ()
    with suppress(LedgerError):
        ledger = Ledger(files.ledger, access="read")
        ledger.verify()
        rows = ledger.rows()
        spends = {row.id: row.spend for row in rows if row.spend.run == files.run}
        decisions = ledger.tip().accepted
        verified, others = True, [row.spend for row in rows if row.spend.run != files.run]
    of_round = {evidence.round: evidence for evidence in done}
    proven, ended = {evidence.spend_row_id for evidence in done}, {what.number for what in rounds}
    return ServerEvidence(
        plan=plan,
        rounds=[
            ServerRound(
                round=what.number,
                asked=what.asked,
                values=what.values,
                done=of_round.get(what.number),
                spend=spends.get(of_round[what.number].spend_row_id) if what.number in of_round else None,
            )
            for what in rounds
        ],
        unproven=[spend.round for number, spend in spends.items() if number not in proven],
        unfinished=[spend for spend in spends.values() if spend.round not in ended],
        other_runs=others,
        ledger_verified=verified,
        decisions=decisions,
        cohorts_from=files.cohorts_from,
        data_fitted_on_private=experiment.dataset.fitted_on_private_data,
        delivered_unnoised=not_averaged(experiment.layout),
        run=files.run,
    )


def _done(path: Path) -> list[ClientLevelEvidence]:
    found: list[ClientLevelEvidence] = []
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError):  # an incomplete line is no evidence
                found.append(ClientLevelEvidence(**json.loads(line)))
    return found
