"""The ledger: whole, ordered, chained, on disk before `spend` returns, and never trusted when it is not."""

import dataclasses
import hashlib
import json
import math
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fedq
from fedq.privacy import Ledger, LedgerError, Mechanism, chain, epsilon
from fedq.privacy import ledger as ledger_module
from fedq.privacy.ledger_tip import LedgerTip
from tests.privacy.ledgers import SPEND, edit, spend_three


def test_a_new_ledger_is_empty_and_whole(ledger):
    assert ledger.rows() == []
    assert ledger.epsilon(1e-5) == 0.0
    ledger.verify()


def test_a_spend_is_read_back_as_it_was_written(ledger):
    assert ledger.spend(SPEND) == 1
    (row,) = ledger.rows()
    assert row.spend == SPEND
    assert (row.id, row.schema) == (1, 2)
    assert row.time.endswith("+00:00")


def test_every_row_holds_the_hash_of_the_row_before(ledger):
    spend_three(ledger)
    rows = ledger.rows()
    assert [row.id for row in rows] == [1, 2, 3]
    assert [row.previous for row in rows[1:]] == [row.hash for row in rows[:-1]]
    assert ledger.tip() == LedgerTip(3, rows[-1].hash)


def test_the_hash_is_sha256_of_the_canonical_row(ledger):
    """Written out once more, so that a reader in another language can check a ledger."""
    ledger.spend(SPEND)
    (row,) = ledger.rows()
    (identity,) = sqlite3.connect(ledger.path).execute("SELECT id FROM identity").fetchone()
    assert row.previous == hashlib.sha256(f"fedq ledger {identity}".encode()).hexdigest()
    content = dataclasses.asdict(SPEND) | {"id": 1, "schema": 2, "time": row.time, "previous": row.previous}
    for name in ("noise_multiplier", "clip_norm", "sample_rate", "delta"):
        content[name] = content[name].hex()
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert row.hash == hashlib.sha256(canonical.encode()).hexdigest()


def test_rounds_compose_to_one_run_of_all_their_steps(ledger):
    spend_three(ledger)
    assert ledger.mechanisms() == [Mechanism(4.0, 0.25, 5)] * 3
    assert ledger.epsilon(1e-5) == epsilon([Mechanism(4.0, 0.25, 15)], 1e-5)
    assert ledger.epsilon(1e-5, accountant="rdp") == epsilon([Mechanism(4.0, 0.25, 15)], 1e-5, accountant="rdp")


def test_a_second_experiment_over_the_same_data_adds_to_the_first(ledger):
    ledger.spend(SPEND)
    again = Ledger(ledger.path)
    again.spend(dataclasses.replace(SPEND, run="another", noise_multiplier=3.0))
    assert again.epsilon(1e-5) == epsilon([Mechanism(4.0, 0.25, 5), Mechanism(3.0, 0.25, 5)], 1e-5)


def test_spends_of_other_data_are_refused(ledger):
    """Another deal of the same examples to as many clients would else spend them twice, in two accounts."""
    ledger.spend(SPEND)
    with pytest.raises(LedgerError, match="would be spent twice"):
        ledger.spend(dataclasses.replace(SPEND, data="dealt anew"))
    assert len(ledger.rows()) == 1


def test_a_message_delivered_again_is_a_spend_of_another_attempt(ledger):
    for _ in range(3):
        ledger.spend(SPEND)
    ledger.spend(dataclasses.replace(SPEND, round=2))
    assert [row.spend.attempt for row in ledger.rows()] == [0, 1, 2, 0]
    assert ledger.epsilon(1e-5) == epsilon([SPEND.as_mechanism()] * 4, 1e-5)


def test_a_ledger_of_the_first_schema_is_read_and_gets_a_tip_with_its_next_spend(ledger):
    """What fedq 0.1 wrote: rows whose hashes are over `schema: 1`, and no tip."""
    spend_three(ledger)
    rows, (identity,) = ledger.rows(), sqlite3.connect(ledger.path).execute("SELECT id FROM identity").fetchone()
    previous = chain.genesis(identity)
    for row in rows:
        digest = chain._hash(row.id, 1, row.time, row.spend, previous)
        edit(ledger, "UPDATE spend SET schema = 1, previous = ?, hash = ? WHERE id = ?", previous, digest, row.id)
        previous = digest
    edit(ledger, "PRAGMA user_version = 1")
    ledger.tip_path.unlink()
    old = Ledger(ledger.path)
    assert old.tip() == LedgerTip(3, previous)
    assert old.spend(SPEND) == 4
    assert old.tip_path.exists()
    old.verify()


def test_a_noisy_count_adds_its_pure_epsilon(ledger):
    """Laplace noise of scale b on a sum that one example moves by 1 is (1/b, 0)-DP."""
    ledger.spend(
        dataclasses.replace(SPEND, mechanism="discrete-laplace", noise_multiplier=10.0, sample_rate=1.0, steps=1)
    )
    assert ledger.epsilon(1e-5) == pytest.approx(0.1)
    ledger.spend(SPEND)
    assert ledger.epsilon(1e-5) == pytest.approx(0.1 + epsilon([SPEND.as_mechanism()], 1e-5))


@pytest.mark.parametrize(
    "use",
    [
        lambda ledger: ledger.spend(SPEND),
        lambda ledger: ledger.epsilon(1e-5),
        lambda ledger: ledger.mechanisms(),
        lambda ledger: ledger.rows(),
        lambda ledger: ledger.tip(),
    ],
)
def test_a_ledger_that_does_not_check_out_is_neither_read_nor_continued(ledger, use):
    spend_three(ledger)
    edit(ledger, "UPDATE spend SET noise_multiplier = 400 WHERE id = 2")
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerError, match="row 2 was changed"):
        use(ledger)
    assert ledger.path.read_bytes() == before


def test_a_refusing_guard_leaves_no_row(ledger):
    ledger.spend(SPEND)
    seen = []

    def refuse(spent):
        seen.extend(spent)
        raise PermissionError("no more")

    with pytest.raises(PermissionError, match="no more"):
        ledger.spend(SPEND, guard=refuse)
    assert [row.spend for row in seen] == [SPEND]
    assert len(ledger.rows()) == 1
    assert ledger.spend(SPEND) == 2  # and the lock is free again


def test_seeded_noise_does_not_enter_a_ledger_of_real_noise_nor_the_reverse(ledger, tmp_path):
    seeded = dataclasses.replace(SPEND, noise_source="seeded")
    ledger.spend(SPEND)
    with pytest.raises(LedgerError, match="ledger of their own"):
        ledger.spend(seeded)
    other = Ledger(tmp_path / "seeded.sqlite")
    other.spend(seeded)
    with pytest.raises(LedgerError, match="ledger of their own"):
        other.spend(SPEND)
    assert (len(ledger.rows()), len(other.rows())) == (1, 1)


def test_a_ledger_opened_for_reading_reads_and_does_not_write(ledger):
    spend_three(ledger)
    reading = Ledger(ledger.path, access="read")
    assert reading.rows() == ledger.rows()
    with pytest.raises(LedgerError, match="opened for reading"):
        reading.spend(SPEND)


def test_reading_does_not_make_a_ledger(tmp_path):
    with pytest.raises(LedgerError, match="no such ledger"):
        Ledger(tmp_path / "absent.sqlite", access="read")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="append or read"):
        Ledger(tmp_path / "absent.sqlite", access="write")


def test_a_newer_schema_is_refused_and_left_alone(ledger):
    edit(ledger, "PRAGMA user_version = 3")
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerError, match="schema 3, this fedq reads up to 2"):
        Ledger(ledger.path)
    with pytest.raises(LedgerError, match="schema 3"):
        ledger.spend(SPEND)
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no fedq ledger"), (b"not a database at all, but long enough to be one" * 40, "not a complete ledger")],
)
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path, content, message):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=message):
        Ledger(path)
    assert path.read_bytes() == content


def test_a_file_cut_short_is_refused(ledger):
    for _ in range(30):
        ledger.spend(SPEND)
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LedgerError, match="ledger"):
        ledger.verify()


def test_a_place_that_cannot_be_written_is_an_error_of_the_ledger(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LedgerError, match="cannot make a ledger"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_making_a_ledger_leaves_no_draft_behind(ledger):
    assert [path.name for path in ledger.path.parent.iterdir()] == ["ledger.sqlite"]


def test_a_ledger_that_stays_locked_is_an_error_and_nothing_is_spent(ledger, monkeypatch):
    monkeypatch.setattr(ledger_module, "_LOCK_SECONDS", 0.05)
    holder = sqlite3.connect(ledger.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="locked"):
        ledger.spend(SPEND)
    holder.execute("ROLLBACK")
    holder.close()
    assert ledger.rows() == []


def test_a_spend_is_committed_with_extra_syncs(ledger, monkeypatch):
    statements = []
    real = sqlite3.connect

    def traced(*args, **kwargs):
        connection = real(*args, **kwargs)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    ledger.spend(SPEND)
    begin = statements.index("BEGIN IMMEDIATE")
    assert "PRAGMA synchronous = EXTRA" in statements[:begin]
    assert statements.index("COMMIT") > begin
    assert real(ledger.path).execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_row_is_visible_to_another_connection_when_spend_returns(ledger):
    ledger.spend(SPEND)
    assert sqlite3.connect(ledger.path).execute("SELECT count(*) FROM spend").fetchone() == (1,)


def test_threads_share_a_ledger_without_losing_a_row(ledger):
    threads = [threading.Thread(target=spend_three, args=(ledger,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.rows()) == 12


PROCESS = """
import sys
from fedq.privacy.ledger import Ledger
from fedq.privacy.spend import Spend
ledger = Ledger(sys.argv[1])
for round in range(8):
    ledger.spend(Spend(4.0, 0.5, 0.25, 5, 1e-5, 144, "os", "digits", sys.argv[2], round))
"""


@pytest.mark.integration
def test_two_processes_that_make_and_use_one_ledger_are_chained(tmp_path):
    path = tmp_path / "new" / "ledger.sqlite"
    root = str(Path(fedq.__path__[0]).parent)
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(path), name], cwd=root) for name in "ab"]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    rows = Ledger(path, access="read").rows()
    assert [row.id for row in rows] == list(range(1, 17))
    assert sorted((row.spend.run, row.spend.round) for row in rows) == [(n, r) for n in "ab" for r in range(8)]


@pytest.mark.integration
def test_a_spend_from_a_process_that_died_right_after_is_there(tmp_path):
    path = tmp_path / "ledger.sqlite"
    root = str(Path(fedq.__path__[0]).parent)
    script = PROCESS + "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", script, str(path), "a"], cwd=root).returncode == -9
    assert len(Ledger(path).rows()) == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_multiplier", 0.0),
        ("noise_multiplier", "4"),
        ("clip_norm", math.inf),
        ("clip_norm", 0.0),
        ("delta", 0.0),
        ("sample_rate", 2.0),
        ("steps", 5.0),
        ("steps", -1),
        ("round", None),
        ("data", 3),
        ("noise_source", "urandom"),
    ],
)
def test_a_spend_that_means_nothing_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(SPEND, **{field: value})


def test_whole_and_numpy_numbers_are_stored_as_plain_floats(ledger):
    ledger.spend(dataclasses.replace(SPEND, noise_multiplier=np.float64(4.0), clip_norm=1))
    (row,) = ledger.rows()
    assert type(row.spend.noise_multiplier) is float
    assert row.spend.clip_norm == 1.0


def test_a_spend_stays_quick_with_a_long_ledger(ledger):
    for _ in range(60):
        ledger.spend(SPEND)
    start = time.process_time()
    ledger.spend(SPEND)
    assert time.process_time() - start < 0.5  # about 5 ms here


def test_a_ledger_that_a_crash_left_inside_a_commit_is_readable(tmp_path):
    """SQLite has to roll the torn half back, which a connection that may only read cannot."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    spend_three(ledger)
    script = (
        "import os, signal, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1')\n"
        "c.execute('BEGIN IMMEDIATE')\n"
        "c.execute('CREATE TABLE torn (x)')\n"
        "c.executemany('INSERT INTO torn VALUES (?)', [('x' * 4000,)] * 200)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(ledger.path)], check=False)
    assert ledger.path.with_name("ledger.sqlite-journal").exists()
    assert len(Ledger(ledger.path, access="read").rows()) == 3
