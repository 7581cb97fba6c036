"""Read a CSV file into checked columns. Depends on text and line numbers; not on the use of a column."""

import csv
import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedq.data.errors import DataNotFoundError

LARGEST = float(np.finfo(np.float32).max)
MISSING_MARKS = frozenset({"", "na", "n/a", "nan", "null", "?"})


@dataclass(frozen=True)
class Table:
    """Columns of stripped cells, and for each row the line in the file where it ends."""

    path: str
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int, column: str) -> str:
        """The position of one cell, for messages."""
        return f"{self.path}, line {self.lines[row]}, column '{column}'"

    def require(self, column: str, key: str) -> None:
        """ValueError for a configured name that is not a column; the message suggests the nearest column."""
        if column not in self.columns:
            nearest = difflib.get_close_matches(column, self.columns, n=1, cutoff=0.0)
            raise ValueError(
                f"data.{key}={column}: no such column in {self.path} (it has {', '.join(self.columns)}); "
                f"did you mean {nearest[0]}?"
            )

    def texts(self, column: str, *, refused: Collection[str] = MISSING_MARKS) -> list[str]:
        """The column's cells; ValueError for an empty cell or one of the `refused` marks (lower case)."""
        cells = self.columns[column]
        for row, cell in enumerate(cells):
            if cell.lower() in refused:
                what = f"holds '{cell}', a mark for a missing value" if cell else "is empty"
                raise ValueError(f"{self.where(row, column)}: the cell {what}; fill it in or delete the row")
        return cells

    def numbers(self, column: str, *, fix: str) -> npt.NDArray[np.float64]:
        """The column as numbers that float32 can hold; `fix` tells the user what to do about text."""
        values = np.empty(len(self), dtype=np.float64)
        for row, cell in enumerate(self.texts(column)):
            number = as_number(cell)
            if number is None:
                raise ValueError(f"{self.where(row, column)}: '{cell}' is not a number; {fix}")
            if not abs(number) <= LARGEST:  # written so that NaN fails too
                raise ValueError(
                    f"{self.where(row, column)}: '{cell}' is not a finite float32; fill in a number or delete the row"
                )
            values[row] = number
        return values


def as_number(cell: str) -> float | None:
    """The number in a cell, or None. Python's own 1_000 is not a number in a table."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def read_table(path: str | Path, *, delimiter: str = ",") -> Table:
    """Read a UTF-8 file whose first row names the columns; blank lines are skipped.

    DataNotFoundError for a missing file; ValueError for a file that is not such a table.
    """
    path = Path(path).expanduser()
    if len(delimiter) != 1:
        raise ValueError(f"data.delimiter={delimiter!r}: must be one character; try ',' or ';'")
    if not path.is_file():
        raise DataNotFoundError(f"data.path={path}: no such file; set data.path to a CSV file")
    lines: list[int] = []
    rows: list[list[str]] = []
    header: list[str] = []
    try:
        # utf-8-sig: spreadsheets write a byte order mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if not row:
                    continue
                if not header:
                    header = [name.strip() for name in row]
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(row)} cells, but the header names "
                        f"{len(header)} columns; fix the row, or set data.delimiter (now {delimiter!r})"
                    )
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; fix the quotes in that row") from error
    _check_header(header, path)
    if not rows:
        raise ValueError(f"{path}: no rows below the header; give a file with examples")
    return Table(str(path), dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)), lines)


def _check_header(header: list[str], path: Path) -> None:
    if not header:
        raise ValueError(f"{path}: empty; the first row must name the columns")
    for index, name in enumerate(header):
        if not name:
            raise ValueError(f"{path}: column {index + 1} has no name in the header; name it")
        if name in header[:index]:
            raise ValueError(f"{path}: the header names column '{name}' twice; rename one")
