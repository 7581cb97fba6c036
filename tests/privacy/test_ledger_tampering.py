"""Whatever is changed, cut off, put back or swapped in a ledger is found, named, and not trusted."""

import dataclasses
import sqlite3

import pytest

from fedq.privacy import Ledger, LedgerError
from fedq.privacy import ledger as ledger_module
from tests.privacy.ledgers import SPEND, edit, spend_three

COLUMNS = [
    ("noise_multiplier", 40.0),
    ("clip_norm", 0.1),
    ("sample_rate", 0.01),
    ("steps", 1),
    ("delta", 1e-4),
    ("nominal_examples", 1),
    ("data", "other"),
    ("run", "other"),
    ("round", 9),
    ("attempt", 1),
    ("bundle", "other"),
    ("unit", "client"),
    ("adjacency", "replace-one"),
    ("mechanism", "discrete-gaussian"),
    ("time", "2020-01-01T00:00:00+00:00"),
]


def test_the_list_of_columns_above_is_complete(ledger):
    with sqlite3.connect(ledger.path) as connection:
        names = {row[1] for row in connection.execute("PRAGMA table_info(spend)")}
    others = {"id", "schema", "previous", "hash", "noise_source"}  # each has a test of its own
    assert names == {name for name, _ in COLUMNS} | others


@pytest.mark.parametrize(("column", "value"), COLUMNS)
def test_a_changed_value_is_found_and_its_row_named(ledger, column, value):
    spend_three(ledger)
    edit(ledger, f"UPDATE spend SET {column} = ? WHERE id = 2", value)
    with pytest.raises(LedgerError, match="row 2 was changed"):
        ledger.verify()


def test_a_noise_source_that_was_promoted_is_found(tmp_path):
    ledger = Ledger(tmp_path / "seeded.sqlite")
    ledger.spend(dataclasses.replace(SPEND, noise_source="seeded"))
    edit(ledger, "UPDATE spend SET noise_source = 'os'")
    with pytest.raises(LedgerError, match="row 1 was changed"):
        ledger.verify()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM spend WHERE id = 2", "row 2 is missing"),
        ("DELETE FROM spend WHERE id = 1", "row 1 is missing"),
        ("UPDATE spend SET id = 7 WHERE id = 3", "row 3 is missing"),
        ("UPDATE spend SET id = 0 WHERE id = 1", "row 1 is missing"),
        ("UPDATE spend SET previous = hash WHERE id = 2", "row 2 does not follow"),
        ("UPDATE spend SET hash = previous WHERE id = 3", "row 3 was changed"),
        ("UPDATE spend SET schema = 3 WHERE id = 2", "row 2 has schema 3"),
        ("UPDATE spend SET steps = 'many' WHERE id = 2", "row 2 holds an impossible value: steps='many'"),
        ("UPDATE spend SET time = X'00FF' WHERE id = 2", "row 2 holds an impossible value: time=b"),
        ("UPDATE spend SET data = X'00FF' WHERE id = 2", "row 2 holds an impossible value: data=b"),
        (
            "UPDATE spend SET mechanism = 'discrete-laplace', sample_rate = 1, noise_multiplier = 0 WHERE id = 2",
            "row 2 holds an impossible value: noise_multiplier=0.0",
        ),
        ("UPDATE spend SET noise_multiplier = -4 WHERE id = 2", "row 2 holds an impossible value"),
        ("UPDATE spend SET noise_source = 'none' WHERE id = 2", "row 2 holds an impossible value"),
        ("UPDATE spend SET mechanism = 'none' WHERE id = 2", "row 2 holds an impossible value"),
        ("DELETE FROM identity", "0 identities"),
        ("UPDATE identity SET id = 'another'", "row 1 does not follow"),
        ("DROP TABLE spend", "no such table"),
    ],
)
def test_a_broken_chain_is_found_and_its_row_named(ledger, statement, message):
    spend_three(ledger)
    edit(ledger, statement)
    with pytest.raises(LedgerError, match=message):
        ledger.verify()


def test_swapped_rows_are_found(ledger):
    spend_three(ledger)
    for old, new in [(1, 100), (2, 1), (100, 2)]:
        edit(ledger, "UPDATE spend SET id = ? WHERE id = ?", new, old)
    with pytest.raises(LedgerError, match="row 1 does not follow"):
        ledger.verify()


def test_a_row_without_its_middle_is_found_even_when_renumbered(ledger):
    spend_three(ledger)
    edit(ledger, "DELETE FROM spend WHERE id = 2")
    edit(ledger, "UPDATE spend SET id = 2 WHERE id = 3")
    with pytest.raises(LedgerError, match="row 2 does not follow"):
        ledger.verify()


def test_rows_of_another_ledger_do_not_fit(ledger, tmp_path):
    other = Ledger(tmp_path / "other.sqlite")
    other.spend(SPEND)
    with sqlite3.connect(ledger.path) as connection:
        connection.execute("ATTACH ? AS other", (str(other.path),))
        connection.execute("INSERT INTO spend SELECT * FROM other.spend")
    with pytest.raises(LedgerError, match="row 1 does not follow"):
        ledger.verify()


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_tail_cut_off_is_found(ledger, left):
    spend_three(ledger)
    edit(ledger, "DELETE FROM spend WHERE id > ?", left)
    with pytest.raises(LedgerError, match=f"has {left} rows and its tip .* says 3: {3 - left} spends are missing"):
        ledger.verify()


def test_an_older_copy_put_back_is_found_and_not_continued(ledger):
    ledger.spend(SPEND)
    older = ledger.path.read_bytes()
    ledger.spend(SPEND)
    ledger.path.write_bytes(older)
    for use in (ledger.rows, lambda: ledger.spend(SPEND), lambda: ledger.epsilon(1e-5)):
        with pytest.raises(LedgerError, match="1 spends are missing"):
            use()
    assert ledger.path.read_bytes() == older


def test_another_history_of_the_same_length_is_found(ledger):
    ledger.spend(SPEND)
    older, tip = ledger.path.read_bytes(), ledger.tip_path.read_bytes()
    ledger.spend(SPEND)
    newer = ledger.tip_path.read_bytes()
    ledger.path.write_bytes(older)
    ledger.tip_path.write_bytes(tip)
    ledger.spend(dataclasses.replace(SPEND, noise_multiplier=400.0))
    ledger.tip_path.write_bytes(newer)
    with pytest.raises(LedgerError, match="row 2 is not the one that the tip"):
        ledger.verify()


def test_a_crash_between_the_row_and_its_tip_leaves_a_whole_ledger(ledger, monkeypatch):
    ledger.spend(SPEND)
    monkeypatch.setattr(ledger_module, "write_tip", lambda path, tip: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ledger.spend(SPEND)
    monkeypatch.undo()
    assert len(ledger.rows()) == 2  # what was written counts, though nothing left on it
    assert ledger.spend(SPEND) == 3
    assert ledger.tip().rows == 3


def test_a_tip_that_is_gone_is_found(ledger):
    ledger.spend(SPEND)
    ledger.tip_path.unlink()
    with pytest.raises(LedgerError, match=r"its tip .* is gone"):
        ledger.spend(SPEND)


@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_file_that_calls_itself_older_than_its_rows_is_not_excused_from_having_a_tip(ledger, left):
    """Rows are hashed and the file's own word for their schema is not: with 1, a missing tip was none."""
    spend_three(ledger)
    edit(ledger, "DELETE FROM spend WHERE id > ?", left)
    edit(ledger, "PRAGMA user_version = 1")
    ledger.tip_path.unlink()
    for use in (ledger.verify, ledger.rows, lambda: ledger.spend(SPEND), lambda: ledger.accept("never mind")):
        with pytest.raises(LedgerError, match="says schema 1, and holds a row of schema 2"):
            use()


def test_nor_where_its_tip_is_there(ledger):
    spend_three(ledger)
    edit(ledger, "PRAGMA user_version = 1")
    with pytest.raises(LedgerError, match="says schema 1, and holds a row of schema 2"):
        ledger.verify()


def test_a_ledger_that_is_gone_is_not_made_anew_while_its_tip_tells_of_it(ledger):
    ledger.spend(SPEND)
    ledger.path.unlink()
    with pytest.raises(LedgerError, match=r"no such ledger, though .* tells of one"):
        Ledger(ledger.path)
    assert not ledger.path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not the tip of a ledger"),
        (b"{}", "not the tip of a ledger"),
        (b'{"version": 2, "rows": 1, "hash": "", "accepted": []}', "version 2, this fedq reads up to 1"),
        (b'{"version": 1, "rows": "1", "hash": "", "accepted": []}', "not the tip of a ledger"),
        (b'{"version": 1, "rows": -1, "hash": "", "accepted": []}', "not the tip of a ledger"),
        (b'{"version": 1, "rows": 1, "hash": "00", "accepted": []}', "row 1 is not the one that the tip"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 200_000, "not the tip of a ledger"),
        (b'{"version": -1, "rows": 1, "hash": "", "accepted": []}', "version -1, this fedq reads up to 1"),
        (b'{"version": 1, "rows": 1, "hash": "", "accepted": "abc"}', "accepted is not a list of texts"),
        (b'{"version": 1, "rows": 1, "hash": "", "accepted": [1]}', "accepted is not a list of texts"),
    ],
)
def test_a_tip_that_is_none_is_never_taken_for_one(ledger, content, message):
    ledger.spend(SPEND)
    ledger.tip_path.write_bytes(content)
    with pytest.raises(LedgerError, match=message):
        ledger.rows()


def test_the_tip_may_lie_elsewhere(tmp_path):
    ledger = Ledger(tmp_path / "here" / "ledger.sqlite", tip=tmp_path / "there" / "head")
    ledger.spend(SPEND)
    assert (tmp_path / "there" / "head").exists()
    edit(ledger, "DELETE FROM spend")
    with pytest.raises(LedgerError, match="1 spends are missing"):
        ledger.verify()


def test_a_person_may_accept_a_shorter_chain_and_that_stays_on_record(ledger):
    spend_three(ledger)
    edit(ledger, "DELETE FROM spend WHERE id > 1")
    with pytest.raises(ValueError, match="say why"):
        ledger.accept(" ")
    ledger.accept("restored from the backup of Monday")
    assert ledger.spend(SPEND) == 2
    (said,) = ledger.tip().accepted
    assert "accepted 1 rows where the head said 3: restored from the backup of Monday" in said


def test_a_changed_row_cannot_be_accepted(ledger):
    spend_three(ledger)
    edit(ledger, "UPDATE spend SET steps = 1 WHERE id = 2")
    with pytest.raises(LedgerError, match="row 2 was changed"):
        ledger.accept("never mind")
