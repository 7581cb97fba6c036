"""The residual that counts: that of the last update which the server accepted, whatever was sent since."""

import json

import numpy as np
import pytest

from fedq.client import ClientState
from fedq.privacy import DPEvidence

NONE = -1  # what the server says before any update was accepted


def vector(value):
    return np.full(3, value, np.float32)


def test_at_first_there_is_no_residual():
    assert ClientState().residual(NONE) is None


def test_after_an_accepted_update_the_residual_is_what_it_lost():
    state = ClientState()
    state.commit(1, None, vector(0.1))
    assert state.residual(1).tolist() == vector(0.1).tolist()


def test_after_a_dropped_first_update_there_is_no_residual():
    """The next update is made anew from the data: adding what the dropped one lost would count it twice."""
    state = ClientState()
    state.commit(1, None, vector(0.1))
    assert state.residual(NONE) is None


def test_after_a_dropped_update_the_residual_is_the_one_before_it():
    state = ClientState()
    state.commit(1, None, vector(0.1))
    state.commit(4, vector(0.1), vector(0.4))
    assert state.residual(1).tolist() == vector(0.1).tolist()


def test_two_drops_in_a_row_still_leave_the_last_that_counted():
    state = ClientState()
    state.commit(1, None, vector(0.1))
    state.commit(4, state.residual(1), vector(0.4))
    state.commit(6, state.residual(1), vector(0.6))
    assert state.residual(1).tolist() == vector(0.1).tolist()
    assert state.residual(6).tolist() == vector(0.6).tolist()


def test_the_same_request_served_twice_starts_from_the_same_residual():
    state = ClientState()
    state.commit(1, None, vector(0.1))
    state.commit(4, state.residual(1), vector(0.4))
    state.commit(4, state.residual(1), vector(0.4))
    assert state.residual(1).tolist() == vector(0.1).tolist()


EVIDENCE = DPEvidence("os", 2, 1.0, 4.0, 0.5, 7, 100)


def test_evidence_is_a_line_for_each_participation(tmp_path):
    state = ClientState(tmp_path / "7")
    state.note_evidence(1, EVIDENCE)
    state.note_evidence(3, EVIDENCE)
    rows = [json.loads(line) for line in (tmp_path / "7" / "evidence.jsonl").read_text().splitlines()]
    assert [row.pop("round") for row in rows] == [1, 3]
    assert [DPEvidence(**row) for row in rows] == [EVIDENCE, EVIDENCE]


def test_the_log_is_the_operators(tmp_path):
    state = ClientState(tmp_path / "7")
    state.log("round=1\n")
    state.log("round=2")
    assert (tmp_path / "7" / "log.txt").read_text() == "round=1\nround=2\n"


@pytest.mark.parametrize("write", [lambda s: s.log("x"), lambda s: s.note_evidence(1, EVIDENCE)])
def test_a_client_without_a_folder_writes_nothing(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(ClientState())
    assert list(tmp_path.iterdir()) == []
