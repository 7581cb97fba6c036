"""Runs one whole job in a process of its own, fedq's or a peer's, and reads its result. Knows no comparison."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_LONGEST = 900.0  # seconds of one process
_SETTINGS = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Outcome:
    """One finished job."""

    seconds: float  # wall time of the process
    startup: float  # seconds from the command to the first round
    accuracy: float  # after the last round, 0 to 1
    steps: int | None = None  # local steps of all clients, where the program counts them
    cohorts: list[list[str]] | None = None  # for each round the clients whose replies counted, where they are logged


def run_fedq(overrides: Sequence[str]) -> Outcome:
    """`fedq run` with these overrides."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.time()
        command = [sys.executable, "-c", "from fedq.cli import main; main()", "run", *overrides]
        output_of(command, Path(folder), python_path=str(_ROOT))
        ended = time.time()
        (result,) = Path(folder).glob("outputs/*/*/result.json")
        log = result.with_name("rounds.jsonl")
        rounds = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        accuracy = json.loads(result.read_text(encoding="utf-8"))["accuracy"]
        return fedq_outcome(rounds, accuracy, begun=begun, ended=ended, last_row=log.stat().st_mtime)


def fedq_outcome(
    rounds: Sequence[dict[str, Any]], accuracy: float, *, begun: float, ended: float, last_row: float
) -> Outcome:
    """From the rows of `rounds.jsonl`; times are seconds since 1970, `last_row` of the row that was written last.

    Rounds follow each other without a gap, so the first one began that many seconds before the last row as all rounds
    took. Row 0 is the initial evaluation.
    """
    trained = [row for row in rounds if row["round"] > 0]
    first_round = last_row - sum(row["seconds"] for row in trained)
    cohorts = [sorted(row["accepted"]) for row in trained]
    return Outcome(ended - begun, first_round - begun, accuracy, cohorts=cohorts)


def run_peer(command: Sequence[str]) -> Outcome:
    """A program of `simulations.baselines`."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.time()
        output = output_of(command, Path(folder))
        ended = time.time()
    return peer_outcome(output, begun=begun, ended=ended)


def peer_outcome(output: str, *, begun: float, ended: float) -> Outcome:
    """From what a peer printed: its last JSON line counts. RuntimeError if there is none."""
    reports = [line for line in output.splitlines() if line.startswith('{"accuracy"')]
    if not reports:
        raise RuntimeError(f"the peer printed no result; the end of its output:\n{output[-1000:]}")
    report = json.loads(reports[-1])
    return Outcome(ended - begun, report["first_round"] - begun, report["accuracy"], steps=report["steps"])


def output_of(command: Sequence[str], folder: Path, *, python_path: str = "") -> str:
    """What the program writes to stdout. RuntimeError with the end of its output if it fails or takes too long.

    The variables that pin numerical threads are removed: each program chooses its own number.
    """
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {**_SETTINGS, "PYTHONPATH": python_path}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its workers can be ended with it
    ) as process:
        try:
            output, errors = process.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise RuntimeError(f"{' '.join(command)} ran for more than {_LONGEST:.0f} s and was ended") from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        last = "\n".join((errors or output).strip().splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}:\n{last}")
    return output
