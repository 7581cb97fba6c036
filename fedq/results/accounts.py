"""Summaries of ledgers: spends by run, totals, and the rest of a budget. Knows ledgers; not runs or clients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedq.privacy import Row, epsilon, is_coarse

if TYPE_CHECKING:
    pass

SHOWN = 20  # number of the newest rows, and of the newest runs, that are printed


@dataclass(frozen=True)
class RunSpend:
    """The spends of one run in one ledger."""

    run: str
    rounds: int
    spends: int
    last: str
    epsilon: float  # of this run alone
    delta: float
    source: str


def by_run(rows: Sequence[Row], *, delta: float | None = None) -> tuple[list[RunSpend], int]:
    """(the newest `SHOWN` runs, oldest first, number of older runs), at `delta` or else each run at its own.

    The epsilon of all runs together is smaller than the sum of their epsilons, by composition.
    """
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.spend.run, []).append(row)
    newest = list(runs.items())[-SHOWN:]
    return [
        RunSpend(
            run=run,
            rounds=len({row.spend.round for row in own}),
            spends=len(own),
            last=own[-1].time[:16],
            epsilon=epsilon([row.spend.as_mechanism() for row in own], delta or own[-1].spend.delta),
            delta=delta or own[-1].spend.delta,
            source=own[-1].spend.noise_source,
        )
        for run, own in newest
    ], len(runs) - len(newest)


def total(rows: Sequence[Row], *, delta: float | None = None) -> tuple[float, float]:
    """(epsilon, delta) of all rows, at `delta` or else the smallest delta of any run; (0, 0) without rows."""
    if not rows:
        return 0.0, 0.0
    delta = min(row.spend.delta for row in rows) if delta is None else delta
    return epsilon([row.spend.as_mechanism() for row in rows], delta), delta


def ledger_json(rows: Sequence[Row], decisions: Sequence[str]) -> dict[str, Any]:
    """A whole ledger as JSON values."""
    spent_in_all, delta = total(rows)
    return {
        "rows": [
            {"id": r.id, "schema": r.schema, "time": r.time, **r.spend.__dict__, "previous": r.previous, "hash": r.hash}
            for r in rows
        ],
        "epsilon": spent_in_all,
        "delta": delta,
        "coarse": is_coarse([row.spend.as_mechanism() for row in rows]),
        "accepted": list(decisions),
    }


@dataclass(frozen=True)
class PlanRow:
    """The noise that one budget needs, for several numbers of rounds."""

    epsilon: float
    noise: Mapping[int, float]  # rounds -> noise multiplier
    step_noise: Mapping[int, float]  # rounds -> std of the noise on one coordinate of the mean gradient, in clips


@dataclass(frozen=True)
class Released:
    """The data that left a client in one run."""

    updates: int
    num_bytes: int  # of all updates
    counts: int  # pairs of noisy counts (evaluate=dp)
    scores: int  # losses and metrics without noise (privacy=off)


@dataclass(frozen=True)
class ClientStatus:
    """The status of a client for its data owner."""

    path: str
    data: str
    epsilon: float
    delta: float
    budget: float | None  # limit over all runs: the stricter of the node config and the policy
    source: str  # where that budget comes from, in words
    floor: float | None  # the largest epsilon that the policy accepts of a run
    unaccounted_units: Sequence[str]  # accepted units of privacy that the client's ledger does not record
    coarse: bool  # whether epsilon is the coarser bound on many different mechanisms
    tip: str | None  # file of the ledger's tip; None: beside the ledger
    runs: Sequence[RunSpend]  # the newest
    older_runs: int
    released: Mapping[str, Released]  # run -> data that left the client
    declined: Sequence[str]  # log lines of the last declined requests
    declined_count: int
