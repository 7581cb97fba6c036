"""The rows of rounds as a table that fits the screen. Knows rows and widths; not terminals or time."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fedq.core.wording import counts, duration, fixed, one_line, percent, size, spent
from fedq.results.rows import RoundRow, bounded

if TYPE_CHECKING:
    from rich.table import Table

GAP = 2  # blanks before each column
WHY_WIDTH = 16  # shortest width of the column "why"


class Column(NamedTuple):
    """One column. On a narrow screen the highest `rank` is dropped first; rank 0 is never dropped."""

    header: str
    rank: int
    cell: Callable[[RoundRow], str]  # "" or "-": no value


class RoundTable:
    """All rows of a run so far, as cells. A column appears with its first value and never becomes narrower."""

    def __init__(self, metric: str = "accuracy") -> None:
        self.rows: list[RoundRow] = []
        self._columns = _columns(metric)
        self._cells: list[list[str]] = []
        self._widths = [len(column.header) for column in self._columns]
        self._has_values = [False] * len(self._columns)
        self._best: float | None = None

    def add(self, row: RoundRow) -> None:
        """Add the row of a round."""
        cells = [column.cell(row) for column in self._columns]
        self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, cells, strict=True)]
        self._has_values = [known or cell not in ("", "-") for known, cell in zip(self._has_values, cells, strict=True)]
        if row.accuracy is not None:
            self._best = max(row.accuracy, -1.0 if self._best is None else self._best)
        self.rows.append(row)
        self._cells.append(cells)

    def fitting(self, width: int) -> list[int]:
        """Indices of the columns that fit into `width` characters."""
        shown = [i for i, column in enumerate(self._columns) if self._has_values[i] or column.rank == 0]
        while self._needed(shown) > width and any(self._columns[i].rank for i in shown):
            shown.remove(max(shown, key=lambda i: self._columns[i].rank))
        return shown

    def _needed(self, shown: Sequence[int]) -> int:
        return sum(GAP + (WHY_WIDTH if self._columns[i].header == "why" else self._widths[i]) for i in shown)

    def render(self, which: Sequence[int], *, width: int) -> "Table":
        """The rows at the positions `which` as a rich table at most `width` characters wide."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        shown = self.fitting(width)
        table = Table(box=box.SIMPLE_HEAD, header_style="cyan", show_edge=False, padding=(0, 0, 0, GAP - 1))
        rest = width - self._needed([i for i in shown if self._columns[i].header != "why"]) - GAP
        for i in shown:
            if self._columns[i].header == "why":
                table.add_column("why", no_wrap=True, overflow="ellipsis", max_width=rest)
            else:
                table.add_column(self._columns[i].header, justify="right", no_wrap=True, min_width=self._widths[i])
        for at in which:
            row, cells = self.rows[at], self._cells[at]
            styles = [self._style(self._columns[i].header, row) for i in shown]
            texts = [Text(cells[i], style=style) for i, style in zip(shown, styles, strict=True)]
            table.add_row(*texts, style="" if row.status == "ok" else "dim")
        return table

    def _style(self, header: str, row: RoundRow) -> str:
        if header == self._columns[1].header and row.accuracy is not None and row.accuracy == self._best:
            return "bold green"
        return "bold red" if header == "lost" and row.lost else "red" if header == "why" else ""

    def telling(self, limit: int) -> list[int]:
        """At most `limit` positions that summarize the run: start, best, end, skipped rounds, and rounds between."""
        last = len(self.rows) - 1
        if last < limit:
            return list(range(last + 1))
        keep = {0, *range(last - 2, last + 1)}
        keep |= {i for i, row in enumerate(self.rows) if row.accuracy is not None and row.accuracy == self._best}
        skipped = [i for i, row in enumerate(self.rows) if row.status == "skipped"]
        keep |= set(skipped[: limit // 4])
        steps = limit - len(keep)
        keep |= {round(last * step / (steps + 1)) for step in range(1, steps + 1)}
        return sorted(keep)[-limit:]


def _columns(metric: str) -> list[Column]:
    return [
        Column("round", 0, lambda row: "start" if row.status == "initial" else str(row.round)),
        Column(one_line(metric, limit=16), 0, _score),
        Column("validation", 8, lambda row: percent(row.validation_accuracy)),
        Column("loss", 5, lambda row: fixed(row.loss)),
        Column("train loss", 9, lambda row: fixed(row.train_loss)),
        Column("epsilon", 1, lambda row: spent(row.epsilon)),
        Column("up", 2, lambda row: size(row.bytes_up)),
        Column("down", 3, lambda row: size(row.bytes_down)),
        Column("time", 4, lambda row: duration(row.seconds)),
        Column("clients", 6, lambda row: str(row.clients)),
        Column("lost", 0, lambda row: str(row.lost)),
        Column("why", 7, _why),
    ]  # fmt: skip


def _score(row: RoundRow) -> str:
    return fixed(row.metric_value) if row.accuracy is None else percent(row.accuracy)


def _why(row: RoundRow) -> str:
    lost = counts({**row.reasons, **bounded([row])}, empty="")
    return ": ".join(filter(None, ["skipped" if row.status == "skipped" else "", lost]))
