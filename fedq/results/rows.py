"""The row of a round, and the append-only log of rows. Knows numbers and one file; not how a round runs."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from fedq.results import strict_json

RoundStatus = Literal["initial", "ok", "skipped"]


@dataclass(frozen=True)
class RoundRow:
    """The figures of one round. Bytes are lengths of serialized messages, counted where they are sent."""

    round: int  # 0: the initial model and the handshakes
    status: RoundStatus
    accuracy: float | None = None  # 0..1, of the evaluation set
    loss: float | None = None  # of the evaluation set
    validation_accuracy: float | None = None
    train_loss: float | None = None
    epsilon: float | None = None  # the largest spent by any client so far; in a deployment, in this run
    bytes_up: int = 0
    bytes_down: int = 0
    float32_bytes_up: int = 0  # the same messages under codec=float32
    float32_bytes_down: int = 0
    seconds: float = 0.0
    clients: int = 0  # accepted replies
    lost: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # reason code -> number of clients lost
    rejected: list[dict[str, Any]] = field(default_factory=list)  # {"client": id, "reason": code}
    accepted: list[str] = field(default_factory=list)  # ids of the clients whose replies counted
    clipped: list[str] = field(default_factory=list)  # ids of clients whose update was scaled down to the bound
    capped: list[str] = field(default_factory=list)  # ids of clients whose weight was above strategy.max_weight
    metric_value: float | None = None  # of the evaluation set, where the metric is not accuracy
    sparsity: float | None = None  # share of the prunable weights that are pruned; None: a dense run

    def __post_init__(self) -> None:
        if self.status not in get_args(RoundStatus):
            raise ValueError(f"status={self.status!r}: must be one of {', '.join(get_args(RoundStatus))}")


class RoundLog:
    """`rounds.jsonl`: one JSON object a line. A line counts once its newline is written.

    An existing log is continued after its last complete line; an incomplete line of a killed run is cut off.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  closed by close(), lives across rounds
        _cut_torn_line(self.path)

    def append(self, row: RoundRow) -> None:
        """Write one line, unbuffered: if the process is killed after this call, nothing is lost. Raises OSError."""
        line = memoryview((strict_json.dumps(asdict(row)) + "\n").encode())
        while line:  # a full disk may write a part of it; the next write then raises
            line = line[self._file.write(line) :]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "RoundLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_rounds(path: Path | str) -> list[RoundRow]:
    """All complete rows, without an incomplete last line. ValueError for a damaged line before it."""
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    return [_row(line, f"{path}, line {i}") for i, line in enumerate(lines, start=1)]


def _row(line: bytes, where: str) -> RoundRow:
    known = {f.name for f in fields(RoundRow)}
    try:
        values = strict_json.loads(line.decode())
        # Unknown keys are ignored, so that this fedq can read rows of a later one.
        return RoundRow(**{key: value for key, value in values.items() if key in known})
    except (ValueError, TypeError, AttributeError) as problem:
        raise ValueError(f"{where}: not a round ({problem}); restore the file or cut it before this line") from None


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


def bounded(rows: Iterable[RoundRow]) -> dict[str, int]:
    """Number of replies that were clipped, and number that were capped; without zeros."""
    rows = list(rows)
    found = {"clipped": sum(len(row.clipped) for row in rows), "capped": sum(len(row.capped) for row in rows)}
    return {what: count for what, count in found.items() if count}


def totals(rows: Iterable[RoundRow]) -> dict[str, int]:
    """Sums over a run, named as in `result.json`."""
    names = ("bytes_up", "bytes_down", "float32_bytes_up", "float32_bytes_down")
    rows = list(rows)
    return {
        **{name: sum(getattr(row, name) for row in rows) for name in names},
        "clients_lost": sum(row.lost for row in rows),
    }
