"""One comparison, as a line of JSON or of a table. Knows no benchmark."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """Two numbers of one unit, which way their ratio goes, and in words what was compared."""

    name: str
    ours: float
    reference: float
    unit: str
    way: Literal["reference/ours", "ours/reference"]
    words: str

    @property
    def ratio(self) -> float:
        return self.reference / self.ours if self.way == "reference/ours" else self.ours / self.reference

    def to_json(self) -> str:
        """One line of strict JSON: a NaN is an error, here and not at the reader."""
        content = {
            "name": self.name,
            "ours": _rounded(self.ours),
            "reference": _rounded(self.reference),
            "unit": self.unit,
            "ratio": _rounded(self.ratio),
            "compared": f"{self.way}: {self.words}",
        }
        return json.dumps(content, allow_nan=False)


class PeerAbsentError(RuntimeError):
    """The program to compare with is not installed; the text says how to install it."""


def show(rows: Sequence[Row], console: Console) -> None:
    """A table, and below it what each line compares."""
    table = Table("name", "unit")
    for title in ("ours", "reference", "ratio"):
        table.add_column(title, justify="right")
    table.add_column("ratio is")
    for row in rows:
        table.add_row(row.name, row.unit, *map(_short, (row.ours, row.reference, row.ratio)), row.way)
    console.print(table)
    for row in rows:
        console.print(f"[bold]{row.name}[/bold]: {row.words}", highlight=False)


def _rounded(value: float) -> float:
    """Five digits: more than any timing is worth, and a ratio of rounded numbers stays within 0.01 %."""
    return float(f"{value:.5g}")


def _short(value: float) -> str:
    return f"{value:.3g}"
