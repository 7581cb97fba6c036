"""A sweep as one table: the overrides of each run and its result. Knows results; runs nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedq.console.next_steps import shown_path
from fedq.core.wording import number, one_line, percent, size, spent
from fedq.results.result import Result

if TYPE_CHECKING:
    from rich.console import RenderableType


def sweep_table(runs: Sequence[tuple[Sequence[str], Result]]) -> "RenderableType":
    """One row for each run, in the order of the runs; `runs`: pairs (overrides, result)."""
    from rich.table import Table
    from rich.text import Text

    common = set.intersection(*(set(overrides) for overrides, _ in runs)) if runs else set()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 1), title_justify="left")
    table.add_column("run", overflow="fold")
    for heading in ("score", "int8", "epsilon", "up", "down"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold", min_width=20)
    for overrides, r in runs:
        changed = " ".join(o for o in overrides if o not in common) or r.name
        is_accuracy = r.accuracy is not None
        table.add_row(
            Text(one_line(changed, limit=60)),
            percent(r.accuracy) if is_accuracy else number(r.metric_value),
            percent(r.int8_accuracy) if is_accuracy else number(r.int8_metric_value),
            "off" if r.epsilon is None else spent(r.epsilon) + ("" if r.private else " (not private)"),
            size(r.bytes_up),
            size(r.bytes_down),
            "" if r.folder is None else shown_path(r.folder),
        )
    return table
