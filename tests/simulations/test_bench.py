"""The benchmark command, its timing helper and its rows; Ray itself only in a slow test."""

import json
import sys
from importlib.util import find_spec
from io import StringIO

import pytest
from rich.console import Console

from simulations.bench import BENCHMARKS, timing
from simulations.bench.__main__ import main
from simulations.bench.row import Row, show
from simulations.bench.timing import medians

KEYS = ["name", "ours", "reference", "unit", "ratio", "compared"]


@pytest.fixture
def faster() -> Row:
    return Row("decode", ours=0.123456, reference=2.0, unit="ms", way="reference/ours", words="theirs over ours")


def test_an_unknown_name_exits_2_and_tells_the_names_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["runtim"])
    told = capsys.readouterr()
    assert all(name in told.err for name in ("runtim", *BENCHMARKS))
    assert told.out == ""


def test_without_ray_a_table_says_so_and_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert main(["runtime"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "ray is not installed" in told
    assert 'pip install -e ".[ray]"' in told


def test_without_ray_json_has_no_row_and_stderr_says_why(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["runtime", "--json"]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "ray is not installed" in told.err


def test_a_row_is_one_line_of_json_whose_ratio_is_that_of_its_numbers(faster):
    line = faster.to_json()
    told = json.loads(line)
    assert "\n" not in line
    assert list(told) == KEYS
    assert told["ratio"] == pytest.approx(told["reference"] / told["ours"], rel=1e-3)
    assert told["compared"] == "reference/ours: theirs over ours"


def test_the_other_way_round_the_ratio_is_turned():
    row = Row("bytes", ours=25.0, reference=100.0, unit="B", way="ours/reference", words="")
    assert row.ratio == 0.25


def test_a_nan_is_no_json():
    with pytest.raises(ValueError, match="Out of range float values"):
        Row("broken", ours=float("nan"), reference=1.0, unit="ms", way="ours/reference", words="").to_json()


def test_the_table_shows_numbers_and_words(faster):
    console = Console(width=100, file=StringIO())
    show([faster], console)
    text = console.file.getvalue()
    assert all(part in text for part in ("decode", "0.123", "16.2", "reference/ours", "theirs over ours"))


def test_contenders_take_turns_in_an_order_that_is_reversed_each_time():
    turns: list[str] = []
    medians({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, repeats=3, warmups=1)
    assert "".join(turns) == "abbaabba"


def test_the_median_leaves_warm_ups_and_outliers_out():
    clock = iter([50.0, 3.0, 1.0, 90.0, 2.0, 4.0])
    assert medians({"own clock": lambda: next(clock)}, repeats=5, warmups=1) == {"own clock": 3.0}


def test_the_machine_is_told_with_cores_flags_and_threads(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\n")
    monkeypatch.setattr(timing, "_CPUINFO", cpuinfo)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = timing.machine()
    assert "Some CPU (avx2 avx512_vnni), 1 numerical thread(s)" in told
    assert told.startswith(f"{timing.num_cores()} cores of")


def test_a_timed_round_of_ours_is_a_whole_round():
    from simulations.bench.runtime import SMALL, _Rounds

    rounds = _Rounds(SMALL, tasks=3, rounds=2)
    assert rounds.run() > 0  # raises where a reply is dropped
    traffic = rounds._link.gather(1, rounds.broadcast, dict.fromkeys("012", -1)).traffic
    assert traffic.up > 3 * 4 * SMALL.size  # every reply carries its packet, and is counted


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the ray extra")
def test_a_round_through_ray_costs_more_than_one_of_ours(capsys):
    assert main(["runtime", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["task_overhead_trivial", "task_overhead_cohort10", "task_overhead_11m"]
    assert rows[0]["ratio"] > 5  # 15 and more on a machine that does nothing else
