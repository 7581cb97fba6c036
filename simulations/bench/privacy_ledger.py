"""What admission by a long ledger takes: every row checked, many different mechanisms composed. Needs no model.

Knows the ledger's file; the reference is a target, no peer.
"""

import math
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from fedq.privacy import DPPlan, Ledger, Row, Spend, admit
from fedq.privacy.chain import SPEND_NAMES
from fedq.privacy.ledger_tip import LedgerTip, write_tip
from simulations.bench.row import Row as Comparison
from simulations.bench.timing import Effort

ROWS, KINDS = 10_000, 1_000
TARGET_SECONDS = 0.5
PLAN = DPPlan(noise_multiplier=5.0, clip_norm=1.0, sample_rate=0.01, steps=20, nominal_examples=1000,
              target_epsilon=1000.0, delta=1e-5)  # fmt: skip


def rows(effort: Effort) -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as folder:
        ledger = long_ledger(Path(folder) / "ledger.sqlite")
        taken = []
        for _ in range(effort.repeats):
            begun = time.perf_counter()
            admit(ledger, PLAN, data="digits")
            taken.append(time.perf_counter() - begun)
    words = (
        f"admission by a ledger of {ROWS:,} rows of {KINDS:,} different mechanisms: file, chain and tip checked, "
        "epsilon computed; the reference is the target"
    )
    yield Comparison("ledger_admission", statistics.median(taken), TARGET_SECONDS, "s", "ours/reference", words)


def long_ledger(path: Path) -> Ledger:
    """A whole ledger of `ROWS` rows, written in one transaction: spent one by one they would take an hour."""
    ledger = Ledger(path)
    with closing(sqlite3.connect(path)) as connection:
        (identity,) = connection.execute("SELECT id FROM identity").fetchone()
        chain: list[Row] = []
        for number in range(ROWS):
            noise = PLAN.noise_multiplier * math.exp(number % KINDS / KINDS)
            spend = Spend(noise, 1.0, 0.01, 20, 1e-5, 1000, "os", "digits", f"run-{number % KINDS}", number)
            chain.append(Row.after(chain, identity, time="2026-01-01T00:00:00", spend=spend))
        marks = ", ".join("?" * (len(SPEND_NAMES) + 5))
        connection.executemany(
            f"INSERT INTO spend VALUES ({marks})",
            [(r.id, r.schema, r.time, *(getattr(r.spend, n) for n in SPEND_NAMES), r.previous, r.hash) for r in chain],
        )
        connection.commit()
    write_tip(ledger.tip_path, LedgerTip(len(chain), chain[-1].hash))
    return ledger
