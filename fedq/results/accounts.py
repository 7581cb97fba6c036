"""Ledgers as a person reads them: what was spent, on what, and what is left. Knows ledgers; not runs or clients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedq.privacy import Row, epsilon, is_coarse

if TYPE_CHECKING:
    pass

SHOWN = 20  # rows of a ledger that are printed, and runs: the newest


@dataclass(frozen=True)
class RunSpend:
    """What one run took of one ledger."""

    run: str
    rounds: int
    spends: int
    last: str
    epsilon: float  # of this run alone
    delta: float
    source: str


def by_run(rows: Sequence[Row], *, delta: float | None = None) -> tuple[list[RunSpend], int]:
    """The newest `SHOWN` runs, oldest first, at this delta or else each at its own; and how many older ones there are.

    Their epsilons do not add up to the whole: composition is better than a sum.
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
    """(epsilon, delta) of all rows, at this delta or else the smallest that any run reported at; (0, 0) of none."""
    if not rows:
        return 0.0, 0.0
    delta = min(row.spend.delta for row in rows) if delta is None else delta
    return epsilon([row.spend.as_mechanism() for row in rows], delta), delta


def ledger_json(rows: Sequence[Row], decisions: Sequence[str]) -> dict[str, Any]:
    """All of a ledger as JSON values."""
    whole, delta = total(rows)
    return {
        "rows": [
            {"id": r.id, "schema": r.schema, "time": r.time, **r.spend.__dict__, "previous": r.previous, "hash": r.hash}
            for r in rows
        ],
        "epsilon": whole,
        "delta": delta,
        "coarse": is_coarse([row.spend.as_mechanism() for row in rows]),
        "accepted": list(decisions),
    }


@dataclass(frozen=True)
class PlanRow:
    """One budget: the noise it needs in so many rounds, and how loud that is in one step."""

    epsilon: float
    noise: Mapping[int, float]  # rounds -> noise multiplier
    step_noise: Mapping[int, float]  # rounds -> std of the noise on one coordinate of the mean gradient, in clips


@dataclass(frozen=True)
class Left:
    """What of one run was made to leave its client."""

    updates: int
    num_bytes: int  # of all updates
    counts: int  # pairs of noisy counts: evaluate=dp
    scores: int  # losses and metrics without noise: privacy was off


@dataclass(frozen=True)
class ClientStatus:
    """What a data owner wants to know of its client."""

    path: str
    data: str
    epsilon: float
    delta: float
    budget: float | None  # what all runs are held to: the stricter of the owner's own and its policy's
    source: str  # whose that is
    floor: float | None  # the largest epsilon that the policy accepts of a run
    unaccounted_units: Sequence[str]  # units of privacy that are accepted though no ledger of the client's counts them
    coarse: bool  # whether epsilon is the coarser bound on many different mechanisms
    tip: str | None  # where the ledger's tip lies; None: beside it
    runs: Sequence[RunSpend]  # the newest
    older_runs: int
    left: Mapping[str, Left]  # by run
    declined: Sequence[str]  # the last requests that were turned away
    turned_away: int
