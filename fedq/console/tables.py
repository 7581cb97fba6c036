"""Tables in Markdown files that a command writes. Knows text; not what is compared."""

import re
from collections.abc import Sequence
from pathlib import Path

from fedq.core.durable import write_bytes


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded columns; numbers are right-aligned. ValueError for rows of another length."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {list(row)!r} has {len(row)} cells for {len(header)} columns; give one a column")
    cells = [[_cell(text) for text in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    right = [bool(rows) and all(_is_number(row[i]) for row in cells[1:]) for i in range(len(header))]
    lines = [_line(row, widths, right) for row in cells]
    ruler = "| " + " | ".join("-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + " |"
    return "\n".join([lines[0], ruler, *lines[1:]])


def replace_table(path: Path | str, name: str, table: str) -> bool:
    """Write `table` between `<!-- BEGIN name: command -->` and `<!-- END name -->`; True if the file changed.

    ValueError if the markers are missing or nested.
    """
    path = Path(path)
    text = _read(path)
    start, end = _between(text, name, path)
    newline = "\r\n" if "\r\n" in text else "\n"
    body = newline.join(["", *table.strip("\n").splitlines(), ""])
    if re.search(r"<!--\s*(BEGIN|END)\s", table):
        raise ValueError(f"table {name!r} contains a marker, where the next update would cut it: remove the comment")
    changed = text[:start] + body + text[end:]
    if changed == text:
        return False
    write_bytes(path, changed.encode())
    return True


def read_table(path: Path | str, name: str) -> str:
    """The text between the markers; a test compares it with the results."""
    text = _read(Path(path))
    start, end = _between(text, name, Path(path))
    return "\n".join(text[start:end].strip().splitlines())


def _between(text: str, name: str, path: Path) -> tuple[int, int]:
    begins = list(re.finditer(rf"<!--[ \t]*BEGIN[ \t]+{re.escape(name)}(:[^\n]*?)?[ \t]*-->", text))
    ends = list(re.finditer(rf"<!--[ \t]*END[ \t]+{re.escape(name)}[ \t]*-->", text))
    want = f"one <!-- BEGIN {name}: command --> and, after it, one <!-- END {name} -->"
    if len(begins) != 1 or len(ends) != 1:
        raise ValueError(f"{path}: {len(begins)} BEGIN and {len(ends)} END markers of table {name!r}; write {want}")
    start, end = begins[0].end(), ends[0].start()
    if end < start:
        raise ValueError(f"{path}: table {name!r} ends before it begins; write {want}")
    inside = re.search(r"<!--\s*(BEGIN|END)\s+([^\s:]+)", text[start:end])
    if inside:
        raise ValueError(f"{path}: a marker of {inside[2]!r} stands inside table {name!r}; move it out")
    return start, end


def _read(path: Path) -> str:
    return path.read_bytes().decode()  # bytes, not text: line endings outside the table stay unchanged


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\|", "|").replace("|", "\\|")


def _is_number(cell: str) -> bool:
    return (
        cell == "-"
        or re.fullmatch(r"\**[-+]?[\d.,]+(e[-+]?\d+)?( ?(%|points|[kMGT]?B|s|ms|x))?( .*\d.*)?\**", cell) is not None
    )


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
    return "| " + " | ".join(padded) + " |"
