"""Ledgers as a person reads them: what was spent, on what, and what is left. Knows ledgers; not runs or clients."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedq.privacy import MOST_EXACT, Row, epsilon, is_coarse
from fedq.results.wording import one_line, plural, size, spent

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

SHOWN = 20  # rows of a ledger that are printed, and runs: the newest
COARSE = f"an upper bound by Renyi accounting, as more than {MOST_EXACT} different noises or rates are in it"


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


def ledger_table(path: str, rows: Sequence[Row], decisions: Sequence[str], *, every: bool) -> "RenderableType":
    """The newest rows (or all), then run by run, then the whole account."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = list(rows) if every else list(rows[-SHOWN:])
    seeded = any(row.spend.noise_source != "os" for row in rows)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("time (UTC)", no_wrap=True)
    table.add_column("run", overflow="fold")
    for name in ("round", "noise x clip", "rate", "steps"):
        table.add_column(name, justify="right", no_wrap=True)
    several = len({row.spend.mechanism for row in rows}) > 1
    if several:
        table.add_column("mechanism", no_wrap=True)
    for row in shown:
        s = row.spend
        again = f" (attempt {s.attempt + 1})" if s.attempt else ""
        noise = f"{s.noise_multiplier:.4g} x {s.clip_norm:g}"
        cells = (str(row.id), row.time[2:16].replace("T", " "), one_line(s.run, limit=40), f"{s.round}{again}")
        table.add_row(*cells, noise, f"{s.sample_rate:.4g}", str(s.steps), *[s.mechanism][:several])
    parts: list[RenderableType] = [Text(path, style="bold")]
    if len(shown) < len(rows):
        parts.append(Text(f"the last {len(shown)} of {len(rows):,} rows; --all shows the others", style="dim"))
    if rows:
        parts += [table, runs_table(*by_run(rows))]
    whole, delta = total(rows)
    if rows:
        kinds = ", ".join(sorted({f"{row.spend.mechanism} for each {row.spend.unit}" for row in rows}))
        parts.append(Text(f"mechanism: {kinds}; data: {one_line(rows[0].spend.data)}"))
        words = f"epsilon {spent(whole)} at delta {delta:g} in {plural(len(rows), 'row')}"
    parts.append(Text(f"spent: {words if rows else 'nothing'}", style="bold"))
    if is_coarse([row.spend.as_mechanism() for row in rows]):
        parts.append(Text(f"that epsilon is {COARSE}", style="dim"))
    if seeded:
        words = "with seeded noise, which whoever knows the seed can subtract: NOT private"
        parts.append(Text(words, style="bold red"))
    parts += [Text(f"a person decided: {one_line(said, limit=300)}", style="yellow") for said in decisions]
    return Group(*parts, Text(""))


def runs_table(runs: Sequence[RunSpend], older: int) -> "RenderableType":
    """One line a run; `older`: how many runs before them are left out."""
    from rich.table import Table

    left_out = f"the last {len(runs)} of {len(runs) + older:,} runs" if older else None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title=left_out, title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("rounds", "spends", "epsilon alone", "at delta"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("last spend (UTC)", no_wrap=True)
    for run in runs:
        cells = (one_line(run.run, limit=40), str(run.rounds), str(run.spends), spent(run.epsilon), f"{run.delta:g}")
        table.add_row(*cells, run.last.replace("T", " "))
    return table


@dataclass(frozen=True)
class PlanRow:
    """One budget: the noise it needs in so many rounds, and how loud that is in one step."""

    epsilon: float
    noise: Mapping[int, float]  # rounds -> noise multiplier
    step_noise: Mapping[int, float]  # rounds -> std of the noise on one coordinate of the mean gradient, in clips


def plan_table(rows: Sequence[PlanRow], facts: Mapping[str, str], *, mean: str) -> "RenderableType":
    """The trade-off of budgets and rounds, below the facts that they hold for; `mean`: of what the noise is on."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2, 0, 0))
    for name, value in facts.items():
        head.add_row(Text(name, style="cyan"), Text(value))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("epsilon", justify="right")
    rounds = list(rows[0].noise)
    for number in rounds:
        table.add_column(plural(number, "round"), justify="right")
    for row in rows:
        table.add_row(f"{row.epsilon:g}", *(_noise(row, number) for number in rounds))
    words = f"noise multiplier (and std of the noise on a coordinate of {mean}, in clip norms)"
    return Group(head, Text(f"\n{words}", style="dim"), table, Text(""))


def _noise(row: PlanRow, rounds: int) -> str:
    value = row.noise[rounds]
    return "out of reach" if math.isinf(value) else f"{value:.4g} ({row.step_noise[rounds]:.2g})"


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
    uncounted: Sequence[str]  # units of privacy that are accepted though no ledger of the client's counts them
    coarse: bool  # whether epsilon is the coarser bound on many different mechanisms
    head: str | None  # where the ledger's head lies; None: beside it
    runs: Sequence[RunSpend]  # the newest
    older_runs: int
    left: Mapping[str, Left]  # by run
    declined: Sequence[str]  # the last requests that were turned away
    turned_away: int


def status_table(status: ClientStatus) -> "RenderableType":
    """Spent, left, by which runs, what left, what was turned away."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_row(Text("client's files", style="cyan"), Text(status.path))
    if status.data:
        head.add_row(Text("data", style="cyan"), Text(one_line(status.data, limit=100)))
    nothing = not status.runs
    said = (
        "nothing: no ledger here, of a client that never trained, or in another folder"
        if nothing
        else f"epsilon {spent(status.epsilon)} at delta {status.delta:g}" + (f" ({COARSE})" if status.coarse else "")
    )
    head.add_row(Text("spent", style="cyan"), Text(said, style="bold"))
    head.add_row(Text("left", style="cyan"), _rest(status))
    beside = "beside the ledger: restoring both is not noticed; name another disk by head-dir= in the node config"
    head.add_row(
        Text("ledger's head", style="cyan"),
        Text(status.head or beside, style="" if status.head else "yellow", overflow="fold"),
    )
    if status.floor is not None:
        head.add_row(
            Text("policy", style="cyan"), Text(f"runs that aim at more than epsilon {status.floor:g} are declined")
        )
    if status.uncounted:
        units = " or ".join(f"privacy={unit}" for unit in status.uncounted)
        words = f"runs with {units}, of which nothing enters the ledger: only a budget or the policy's unit bars them"
        head.add_row(Text("not counted", style="cyan"), Text(words, style="yellow"))
    parts: list[RenderableType] = [head]
    if status.runs:
        parts += [Text(""), runs_table(status.runs, status.older_runs)]
    if status.left:
        parts.append(Text("\nwhat was made to leave, by run", style="dim"))
        sent = Table.grid(padding=(0, 2, 0, 0))
        for run, left in status.left.items():
            kinds = [plural(left.updates, "update"), size(left.num_bytes)]
            kinds += [plural(left.counts, "noisy count")] if left.counts else []
            kinds += [f"{plural(left.scores, 'score')} without noise"] if left.scores else []
            sent.add_row(one_line(run, limit=40), ", ".join(kinds))
        parts.append(sent)
    if status.turned_away:
        parts.append(Text(f"\n{plural(status.turned_away, 'request')} turned away; the last:", style="yellow"))
        parts += [Text(f"  {one_line(line, limit=300)}") for line in status.declined]
    return Group(*parts, Text(""))


def _rest(status: ClientStatus) -> "Text":
    from rich.text import Text

    if status.budget is None:
        return Text("no budget is named: each run's own decides (--epsilon and --policy, as in your node config)")
    rest = max(0.0, status.budget - status.epsilon)  # rounded down: never more than there is
    words = f"epsilon {math.floor(100 * rest) / 100:.2f} of {status.source} {status.budget:g}"
    return Text(f"{words}, at delta {status.delta:g}; less where a run asks for a smaller delta", style="bold")
