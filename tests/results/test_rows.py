"""The round log: whole lines, strict JSON, tolerant of a torn end. Knows only fedq.results.rows."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from fedq.results.rows import RoundLog, RoundRow, read_rounds, totals


def test_rows_come_back_as_they_were_written(tmp_path, four_rounds):
    with RoundLog(tmp_path / "rounds.jsonl") as log:
        for row in four_rounds:
            log.append(row)
    assert read_rounds(tmp_path / "rounds.jsonl") == four_rounds


def test_a_line_is_on_disk_before_append_returns(tmp_path):
    log = RoundLog(tmp_path / "rounds.jsonl")
    log.append(RoundRow(1, "ok"))
    assert [row.round for row in read_rounds(log.path)] == [1]
    log.close()


def test_a_diverged_loss_is_null(tmp_path):
    with RoundLog(tmp_path / "rounds.jsonl") as log:
        log.append(RoundRow(1, "ok", loss=math.nan, train_loss=math.inf))
    text = log.path.read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["loss"] is None
    assert json.loads(text)["train_loss"] is None


def test_a_torn_last_line_is_left_out(tmp_path, four_rounds):
    with RoundLog(tmp_path / "rounds.jsonl") as log:
        for row in four_rounds[:2]:
            log.append(row)
    whole = log.path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):  # wherever the kill fell within the second line
        log.path.write_bytes(whole[:cut])
        assert read_rounds(log.path) == four_rounds[:1]


def test_a_log_goes_on_behind_its_last_whole_line(tmp_path):
    path = tmp_path / "rounds.jsonl"
    with RoundLog(path) as log:
        log.append(RoundRow(1, "ok"))
    with path.open("ab") as file:
        file.write(b'{"round": 2, "sta')
    with RoundLog(path) as log:
        log.append(RoundRow(2, "ok"))
    assert [row.round for row in read_rounds(path)] == [1, 2]


@pytest.mark.parametrize(
    "line", ["not json", '{"round": 1}', "[1, 2]", '{"round": 1, "status": "ok", "loss": NaN}', "\xff"]
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(b'{"round": 0, "status": "initial"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match=r"rounds\.jsonl, line 2: not a round .*restore the file"):
        read_rounds(path)


def test_a_later_versions_key_is_passed_over(tmp_path):
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"round": 3, "status": "ok", "carbon": 1.5}\n')
    assert read_rounds(path) == [RoundRow(3, "ok")]


def test_an_unknown_status_is_refused():
    with pytest.raises(ValueError, match="status='done': must be one of initial, ok, skipped"):
        RoundRow(1, "done")


def test_totals_are_sums_over_all_rows(four_rounds):
    assert totals(four_rounds) == {
        "bytes_up": 4 * 1_000,
        "bytes_down": 5 * 1_100,
        "float32_bytes_up": 4 * 4_000,
        "float32_bytes_down": 5 * 4_000,
        "clients_lost": 12,
    }


def test_a_killed_writer_leaves_only_whole_rounds(tmp_path):
    path = tmp_path / "rounds.jsonl"
    program = (
        "import itertools, sys; from fedq.results.rows import RoundLog, RoundRow\n"
        "log = RoundLog(sys.argv[1])\n"
        "for i in itertools.count(): log.append(RoundRow(i, 'ok'))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
    deadline = time.monotonic() + 10
    while (not path.exists() or path.stat().st_size < 20_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    numbers = [row.round for row in read_rounds(path)]
    assert len(numbers) > 10
    assert numbers == list(range(len(numbers)))
