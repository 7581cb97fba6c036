"""Tables of ledgers: what was spent, on what, and what is left. Knows their rows and figures; not runs or clients."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedq.core.wording import one_line, plural, size, spent
from fedq.privacy import MOST_EXACT, Row, is_coarse
from fedq.results.accounts import SHOWN, ClientStatus, PlanRow, RunSpend, by_run, total

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

COARSE = f"an upper bound by Renyi accounting, used for more than {MOST_EXACT} different noises or rates"


def ledger_table(path: str, rows: Sequence[Row], decisions: Sequence[str], *, every: bool) -> "RenderableType":
    """The newest rows, or all with `every`, then a line for each run, then the total."""
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
    spent_in_all, delta = total(rows)
    if rows:
        kinds = ", ".join(sorted({f"{row.spend.mechanism} for each {row.spend.unit}" for row in rows}))
        parts.append(Text(f"mechanism: {kinds}; data: {one_line(rows[0].spend.data)}"))
        words = f"epsilon {spent(spent_in_all)} at delta {delta:g} in {plural(len(rows), 'row')}"
    parts.append(Text(f"spent: {words if rows else 'nothing'}", style="bold"))
    if is_coarse([row.spend.as_mechanism() for row in rows]):
        parts.append(Text(f"that epsilon is {COARSE}", style="dim"))
    if seeded:
        words = "with seeded noise, which anybody who knows the seed can subtract: NOT private"
        parts.append(Text(words, style="bold red"))
    parts += [Text(f"a person decided: {one_line(said, limit=300)}", style="yellow") for said in decisions]
    return Group(*parts, Text(""))


def runs_table(runs: Sequence[RunSpend], older: int) -> "RenderableType":
    """One line for each run; `older`: number of earlier runs that are left out."""
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


def plan_table(rows: Sequence[PlanRow], facts: Mapping[str, str], *, mean: str) -> "RenderableType":
    """The facts of a plan, and the noise for budgets and rounds; `mean`: the mean that the noise is added to."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    summary = Table.grid(padding=(0, 2, 0, 0))
    for name, value in facts.items():
        summary.add_row(Text(name, style="cyan"), Text(value))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("epsilon", justify="right")
    rounds = list(rows[0].noise)
    for number in rounds:
        table.add_column(plural(number, "round"), justify="right")
    for row in rows:
        table.add_row(f"{row.epsilon:g}", *(_noise(row, number) for number in rounds))
    words = f"noise multiplier (and std of the noise on a coordinate of {mean}, in clip norms)"
    return Group(summary, Text(f"\n{words}", style="dim"), table, Text(""))


def _noise(row: PlanRow, rounds: int) -> str:
    value = row.noise[rounds]
    return "out of reach" if math.isinf(value) else f"{value:.4g} ({row.step_noise[rounds]:.2g})"


def status_table(status: ClientStatus) -> "RenderableType":
    """Spends, the rest of the budget, runs, data that left, and declined requests."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    summary = Table.grid(padding=(0, 2, 0, 0))
    summary.add_row(Text("client's files", style="cyan"), Text(status.path))
    if status.data:
        summary.add_row(Text("data", style="cyan"), Text(one_line(status.data, limit=100)))
    nothing = not status.runs
    said = (
        "nothing: there is no ledger here; the client never trained, or its ledger is in another folder"
        if nothing
        else f"epsilon {spent(status.epsilon)} at delta {status.delta:g}" + (f" ({COARSE})" if status.coarse else "")
    )
    summary.add_row(Text("spent", style="cyan"), Text(said, style="bold"))
    summary.add_row(Text("left", style="cyan"), _rest(status))
    beside = "beside the ledger: restoring both is not noticed; name another disk by head-dir= in the node config"
    summary.add_row(
        Text("ledger's tip", style="cyan"),
        Text(status.tip or beside, style="" if status.tip else "yellow", overflow="fold"),
    )
    if status.floor is not None:
        summary.add_row(
            Text("policy", style="cyan"), Text(f"runs that aim at more than epsilon {status.floor:g} are declined")
        )
    if status.unaccounted_units:
        units = " or ".join(f"privacy={unit}" for unit in status.unaccounted_units)
        words = f"runs with {units} enter nothing in the ledger: only a budget or the policy's unit refuses them"
        summary.add_row(Text("not counted", style="cyan"), Text(words, style="yellow"))
    parts: list[RenderableType] = [summary]
    if status.runs:
        parts += [Text(""), runs_table(status.runs, status.older_runs)]
    if status.released:
        parts.append(Text("\nleft this machine, by run", style="dim"))
        sent = Table.grid(padding=(0, 2, 0, 0))
        for run, released in status.released.items():
            kinds = [plural(released.updates, "update"), size(released.num_bytes)]
            kinds += [plural(released.counts, "noisy count")] if released.counts else []
            kinds += [f"{plural(released.scores, 'score')} without noise"] if released.scores else []
            sent.add_row(one_line(run, limit=40), ", ".join(kinds))
        parts.append(sent)
    if status.declined_count:
        parts.append(Text(f"\n{plural(status.declined_count, 'request')} turned away; the last:", style="yellow"))
        parts += [Text(f"  {one_line(line, limit=300)}") for line in status.declined]
    return Group(*parts, Text(""))


def _rest(status: ClientStatus) -> "Text":
    from rich.text import Text

    if status.budget is None:
        return Text("no budget: each run's own applies (give --epsilon and --policy as in your node config)")
    rest = max(0.0, status.budget - status.epsilon)  # rounded down: never more than the true rest
    words = f"epsilon {math.floor(100 * rest) / 100:.2f} of {status.source} {status.budget:g}"
    return Text(f"{words}, at delta {status.delta:g}; less where a run asks for a smaller delta", style="bold")
