"""The live display of a run in a terminal. Knows rows, time and a stream; not where rows come from."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from fedq.console.round_table import RoundTable
from fedq.core.wording import clock, one_line, plural
from fedq.results.rows import RoundRow

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.live import Live

LIVE_ROWS = 15
FINAL_ROWS = 20
TICKS = 2  # frames a second: a frame takes about 10 ms from the training
FRAME = 8  # lines of the screen that are not rows: title, header, ruler, progress, blanks and the prompt


class Display:
    """Shows one row for each round of a running run. Silent without a terminal, or if `enabled` is False.

    `detail`: a few words about the run; `metric`: name of the score in `metric_value`.
    """

    def __init__(
        self,
        name: str,
        *,
        rounds: int,
        detail: str = "",
        epsilon_budget: float | None = None,
        metric: str = "accuracy",
        stream: TextIO | None = None,
        enabled: bool = True,
    ) -> None:
        self._rounds = rounds
        budget = "" if epsilon_budget is None else f"epsilon up to {epsilon_budget:g}"
        self._name, self._detail = one_line(name), ", ".join(filter(None, [one_line(detail), budget]))
        self._table = RoundTable(metric)
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled and _is_screen(self._stream)
        self._live: Live | None = None
        self._started = self._row_at = time.monotonic()
        self._drawn_at = 0.0
        self._replies: tuple[int, int] | None = None
        self._over = False

    def __enter__(self) -> "Display":
        self._started = self._row_at = time.monotonic()
        if self._enabled:
            from rich.console import Console
            from rich.live import Live

            # A model's output goes above the table; a redirected stdout must stay unchanged.
            self._live = Live(
                console=Console(file=self._stream, force_jupyter=False, highlight=False),
                get_renderable=lambda: _Frame(self),
                refresh_per_second=TICKS,
                redirect_stdout=_is_screen(sys.stdout),
                redirect_stderr=_is_screen(sys.stderr),
            )
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError):  # the terminal was closed; the run's own error is more important
                live.stop()  # also on Ctrl-C: restores the cursor and the streams

    @property
    def rows(self) -> list[RoundRow]:
        """The rows shown so far."""
        return self._table.rows

    def row(self, row: RoundRow) -> None:
        """Show the row of a round."""
        self._table.add(row)
        now = time.monotonic()
        # Rounds of a few milliseconds would otherwise spend their time on drawing.
        due = now - self._drawn_at > 0.1
        self._row_at, self._replies = now, None
        if due:
            self._drawn_at = now
            self._show(lambda live: live.refresh())

    def replies(self, done: int, expected: int) -> None:
        """Set the number of replies so far in this round. The next frame shows it."""
        self._replies = (done, expected)

    def note(self, text: str) -> None:
        """Print a line above the table."""
        from rich.text import Text

        self._show(lambda live: live.console.print(Text(f" {one_line(text)}", style="yellow")))

    def _show(self, on: "Callable[[Live], None]") -> None:
        if self._live is not None:
            with suppress(OSError):  # a closed terminal does not end a run
                on(self._live)


class _Frame:
    """One frame of the display; its layout depends on the screen's size."""

    def __init__(self, display: Display) -> None:
        self.display = display

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from rich.text import Text

        shown, table, width = self.display, self.display._table, options.max_width
        title = Text.assemble((f" {shown._name}", "bold"), (f"  {shown._detail}", "dim"), no_wrap=True)
        title.truncate(width, overflow="ellipsis")
        yield title
        yield Text("")
        count = len(table.rows)
        if shown._over:
            shown_rows = table.telling(FINAL_ROWS)
            yield table.render(shown_rows, width=width)
            if len(shown_rows) < count:
                yield Text(f" {len(shown_rows)} of {plural(count, 'row')}; rounds.jsonl holds all", style="dim")
            yield Text("")
            return
        first = max(0, count - max(1, min(LIVE_ROWS, options.size.height - FRAME)))
        yield table.render(range(first, count), width=width)
        yield Text("")
        yield _progress(shown, width)


def _progress(shown: Display, width: int) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done = max((row.round for row in shown.rows[-1:]), default=0)
    now = time.monotonic()
    replies = shown._replies
    within = replies[0] / replies[1] if replies and replies[1] else 0.0
    running = f" round {min(done + 1, shown._rounds)} of {shown._rounds}"
    if replies and width >= 76:
        running += f", {replies[0]} of {replies[1]} replies"
    times = f"{clock(now - shown._started)} elapsed"
    seconds = [row.seconds for row in shown.rows[-20:] if row.round > 0]
    if seconds:
        # The time since the last row is subtracted, but a long round shows no negative rest.
        left = max(0.0, median(seconds) * (shown._rounds - done) - (now - shown._row_at))
        times += f", about {clock(left)} left"
    bar = ProgressBar(
        total=max(1, shown._rounds),
        completed=min(shown._rounds, done + within),
        width=max(4, width - len(running) - len(times) - 3),
        complete_style="cyan",
        finished_style="green",
    )
    line = Table.grid(padding=(0, 1))
    line.add_row(Text(running), bar, Text(times, style="dim"))
    return line


def _is_screen(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can move its cursor."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # None under pythonw, or a closed stream
        return False
