"""SIGKILL at 100 random moments of real client processes: no ledger ever claims less than what left."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

import fedq
from fedq.experiment.ledgers import LEDGER
from fedq.privacy import Ledger

PHASES = ["receive", "admit", "spend", "tip", "step", "commit", "evidence", "left"]
KILLS = 100
ROUNDS = 4  # over so many rounds the moment of a kill is drawn: the first of a process differs from the others


class Clients:
    """The process that forks clients, and what it says."""

    def __init__(self, home):
        self.pid = None
        source = Path(fedq.__file__).resolve().parents[1]
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.e2e.killed_client", str(home)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=source
        )
        assert self.line() == "ready"

    def close(self):
        """With a client that may still run: it is not this process' own child."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()

    def line(self):
        return self.process.stdout.readline().strip()

    def start(self, first):
        self.process.stdin.write(f"{first}\n")
        self.process.stdin.flush()
        self.pid = int(self.line().removeprefix("pid "))
        return self.pid

    def killed(self, pid):
        """What the client said before it died, in order."""
        os.kill(pid, signal.SIGKILL)
        self.pid = None
        return list(iter(self.line, "dead"))

    def until(self, word):
        """What is said up to a line that begins so."""
        said = [self.line()]
        while not said[-1].startswith(word):
            said.append(self.line())
        return said


@pytest.fixture
def clients(tmp_path):
    running = Clients(tmp_path)
    yield running
    running.close()


def check(home, left):
    """The ledger is readable, and holds a row of every round whose update has left."""
    ledger = Ledger(home / LEDGER)
    ledger.verify()
    rows = ledger.rows()
    paid = Counter(row.spend.round for row in rows)
    assert all(paid[round] >= times for round, times in left.items()), "an update left that was not paid for"
    assert len(rows) >= sum(left.values())
    assert ledger.tip().rows == len(rows)
    return rows


@pytest.mark.slow
def test_a_client_killed_at_any_moment_has_never_sent_more_than_its_ledger_says(clients, tmp_path):
    chance, left, phases = random.Random(14), Counter(), Counter()
    pid, begun = clients.start(1), time.monotonic()
    said = clients.until(f"left {ROUNDS}")
    span = time.monotonic() - begun
    said += clients.killed(pid)
    for _ in range(KILLS):
        left.update(int(line.split()[1]) for line in said if line.startswith("left "))
        rows = check(tmp_path, left)
        pid = clients.start(max(left, default=0) + 1)  # a round that was not answered is asked for again
        time.sleep(chance.uniform(0, span))
        said = clients.killed(pid)
        phases[said[-1].split()[0] if said else "start"] += 1
    # A phase of a few microseconds may have been missed: it is aimed at.
    for phase in PHASES:
        if not phases[phase]:
            left.update(int(line.split()[1]) for line in said if line.startswith("left "))
            pid = clients.start(max(left, default=0) + 1)
            said = clients.until(phase)
            said += clients.killed(pid)
            phases[phase] += 1
    left.update(int(line.split()[1]) for line in said if line.startswith("left "))
    rows = check(tmp_path, left)
    print(f"kills by phase: {dict(phases)}; {sum(left.values())} updates left, {len(rows)} spends")
    assert sum(phases.values()) >= KILLS
    assert set(PHASES) <= set(phases)
    assert any(row.spend.attempt for row in rows), "some round was paid for twice"


def test_a_client_killed_right_after_its_spend_has_paid_for_what_it_did_not_send(clients, tmp_path):
    pid = clients.start(1)
    said = clients.until("step")
    said += clients.killed(pid)
    assert not any(line.startswith("left") for line in said)
    assert [row.spend.round for row in check(tmp_path, Counter())] == [1]
    clients.start(1)
    clients.until("left 1")
    assert [row.spend.attempt for row in Ledger(tmp_path / LEDGER).rows()][:2] == [0, 1]
