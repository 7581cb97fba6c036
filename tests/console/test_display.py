"""The live view on a real pseudo-terminal, and its table at any width. Knows only fedq.results."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress

import pytest
from rich.console import Console

from fedq.console import Display
from fedq.console.round_table import RoundTable
from fedq.results import RoundRow

SHOW_CURSOR = "\x1b[?25h"


class Terminal:
    """A pseudo-terminal that keeps all it was sent."""

    def __init__(self, columns=80, lines=40):
        self.outer, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.stream = os.fdopen(inner, "w", encoding="utf-8")
        self._chunks: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while True:
            try:
                chunk = os.read(self.outer, 65536)
            except OSError:  # what Linux says once the inner side is closed
                return
            self._chunks.append(chunk)

    def close(self):
        if not self.stream.closed:
            with suppress(OSError):  # a test may have closed the terminal itself
                self.stream.close()
            self._reader.join(5)
            with suppress(OSError):
                os.close(self.outer)
        return b"".join(self._chunks).decode()


@pytest.fixture
def screen(monkeypatch):
    # The console takes its size from these where they are set, as some CI systems do.
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    yield terminal
    terminal.close()


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_each_round_is_a_row(screen, four_rounds):
    with Display("demo", rounds=4, detail="10 clients", epsilon_budget=8, stream=screen.stream) as display:
        for row in four_rounds:
            display.row(row)
    last = " ".join(plain(screen.close()).rsplit("demo", 1)[1].split())
    assert last.startswith("10 clients, epsilon up to 8 round accuracy loss epsilon up down time clients lost")
    assert "start 10.0 % 2.300 - 0 B 1.10 kB" in last
    assert "1 50.0 % 1.200 1.01 1.00 kB 1.10 kB 0.50 s 10 0" in last
    assert "4 75.0 % 0.800 4.00 1.00 kB 1.10 kB 0.60 s 8 2" in last


def test_progress_says_where_the_run_is(screen, four_rounds):
    with Display("demo", rounds=40, stream=screen.stream) as display:
        display.replies(3, 10)
        display.row(four_rounds[1])
    text = plain(screen.close())
    assert "round 2 of 40" in text
    # One round of 0.5 s done, 39 to go: 19.5 s, less the moment since.
    assert re.search(r"0:0\d elapsed, about 0:19 left", text)


def test_a_note_stays_and_is_harmless(screen):
    with Display("demo", rounds=4, stream=screen.stream) as display:
        display.note("client [red]7\x1b[2J dropped")
    text = screen.close()
    assert "client [red]7\\x1b[2J dropped" in text
    assert "\x1b[2J" not in text


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_terminal_is_given_back_when_a_run_breaks(screen, error, four_rounds):
    out, err = sys.stdout, sys.stderr

    def broken_run():
        with Display("demo", rounds=4, stream=screen.stream) as display:
            display.row(four_rounds[0])
            raise error("stop")

    with pytest.raises(error, match="stop"):
        broken_run()
    assert (sys.stdout, sys.stderr) == (out, err)
    text = screen.close()
    assert text.rindex(SHOW_CURSOR) > text.rindex("\x1b[?25l")
    assert "10.0 %" in plain(text)


def test_no_thread_is_left_behind(screen, four_rounds):
    def drawing():  # other libraries' threads come and go
        return [t for t in threading.enumerate() if type(t).__module__.startswith("rich")]

    with Display("demo", rounds=4, stream=screen.stream) as display:
        display.row(four_rounds[0])
        (thread,) = drawing()
    thread.join(timeout=5)  # rich tells it to end and does not wait
    assert drawing() == []
    screen.close()


def test_a_terminal_that_goes_away_does_not_end_the_run(screen, four_rounds):
    with Display("demo", rounds=4, stream=screen.stream) as display:
        screen.stream.flush()
        null = os.open("/dev/full", os.O_WRONLY)  # every write to it fails, as to a closed terminal
        os.dup2(null, screen.stream.fileno())
        os.close(null)
        for row in four_rounds:
            display.row(row)
            display.note("still here")
    assert len(display.rows) == 5


def test_no_terminal_no_word(four_rounds):
    stream = io.StringIO()
    with Display("demo", rounds=4, stream=stream) as display:
        display.row(four_rounds[0])
        display.note("unseen")
    assert stream.getvalue() == ""
    assert display.rows == four_rounds[:1]


def test_switched_off_it_is_silent_on_a_terminal_too(screen, four_rounds):
    with Display("demo", rounds=4, stream=screen.stream, enabled=False) as display:
        display.row(four_rounds[0])
    assert screen.close() == ""


def test_a_dumb_terminal_is_left_alone(screen, monkeypatch, four_rounds):
    monkeypatch.setenv("TERM", "dumb")
    with Display("demo", rounds=4, stream=screen.stream) as display:
        display.row(four_rounds[0])
    assert screen.close() == ""


def long_run(rounds):
    table = RoundTable()
    for i in range(rounds + 1):
        status, lost = "skipped" if i == 100 else "ok", i % 2
        table.add(RoundRow(i, status, accuracy=1 - abs(i - 700) / 1000, loss=1.0, epsilon=1.0, clients=10,
                           lost=lost, reasons={"a-rather-long-reason-code": lost}))  # fmt: skip
    return table


def text_of(table, which, width):
    file = io.StringIO()
    Console(file=file, width=width).print(table.render(which, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 50, 60, 70, 80, 100, 140])
def test_no_cell_is_cut_at_any_width(width):
    table = long_run(1000)
    text = text_of(table, [998, 999, 1000], width)
    assert max(map(len, text.splitlines())) <= width
    assert "70.1 %" in text  # round 999: 1 - 299 / 1000
    assert "1000" in text
    if width < 80:
        assert "…" not in text


def test_a_narrow_screen_keeps_what_matters():
    table = long_run(3)
    heads = text_of(table, [3], 40).split("\n")[0].split()
    assert heads[:3] == ["round", "accuracy", "epsilon"]
    assert heads[-1] == "lost"


def test_a_long_run_is_told_by_start_best_skipped_and_end():
    told = long_run(1000).telling(20)
    assert len(told) <= 20
    assert {0, 100, 700, 998, 999, 1000} <= set(told)
    assert told == sorted(set(told))


def test_a_short_run_is_told_whole():
    assert long_run(9).telling(20) == list(range(10))


def test_columns_with_nothing_to_tell_are_not_shown():
    table = RoundTable()
    table.add(RoundRow(1, "ok", accuracy=0.5))
    heads = text_of(table, [0], 120).split("\n")[0].split()
    assert "epsilon" not in heads
    assert "why" not in heads
    assert "validation" not in heads


def test_another_metric_takes_the_place_of_accuracy():
    table = RoundTable("mse[0]")
    table.add(RoundRow(1, "ok", metric_value=0.25))
    text = text_of(table, [0], 80)
    assert "mse[0]" in text
    assert "0.250" in text
    assert "accuracy" not in text


def test_importing_the_room_loads_neither_rich_nor_matplotlib():
    program = "import sys, fedq.results; print(sorted({'rich', 'matplotlib', 'torch', 'flwr'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
