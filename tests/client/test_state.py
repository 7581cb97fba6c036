"""The residual that counts: that of the last update which the server accepted, whatever was sent since."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fedq
from fedq.client import ClientState
from fedq.client.state import StateError
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


# --- where each message meets a new process ---------------------------------------------------------------


def commit(folder, round, before, after):
    """One message, served by a process of its own."""
    state = ClientState(folder, durable=True)
    with state.exclusive():
        state.commit(round, before, after)


def residual(folder, accepted):
    """What the next process starts from."""
    state = ClientState(folder, durable=True)
    with state.exclusive():
        return state.residual(accepted)


def test_at_first_there_is_no_residual_on_disk_either(tmp_path):
    assert residual(tmp_path / "new", NONE) is None


def test_the_next_process_finds_both_residuals_bit_for_bit(tmp_path):
    before, after = np.float32([0.1, -0.0, 1e-45]), np.float32([3e38, 1 / 3, -7])
    commit(tmp_path, 4, before, after)
    assert residual(tmp_path, 4).tobytes() == after.tobytes()
    assert residual(tmp_path, 2).tobytes() == before.tobytes()


def test_the_next_process_knows_that_there_was_none_before_the_first_update(tmp_path):
    commit(tmp_path, 1, None, vector(0.1))
    assert residual(tmp_path, NONE) is None
    assert residual(tmp_path, 1).tolist() == vector(0.1).tolist()


def test_the_next_process_finds_the_weights_bit_for_bit(tmp_path):
    weights = np.float32([0.1, -0.0, 1e-45])
    state = ClientState(tmp_path, durable=True)
    with state.exclusive():
        state.commit(4, None, None, weights)
    other = ClientState(tmp_path, durable=True)
    with other.exclusive():
        assert other.weights.tobytes() == weights.tobytes()
        assert (other.round, other.residual(4)) == (4, None)


def test_weights_that_are_kept_no_more_are_gone_for_the_next_process_too(tmp_path):
    state = ClientState(tmp_path, durable=True)
    with state.exclusive():
        state.commit(4, None, None, vector(0.1))
    commit(tmp_path, 5, None, vector(0.2))
    with state.exclusive():
        assert state.weights is None


def test_one_object_that_serves_several_messages_reads_what_another_process_wrote(tmp_path):
    mine = ClientState(tmp_path, durable=True)
    with mine.exclusive():
        mine.commit(1, None, vector(0.1))
    commit(tmp_path, 2, vector(0.1), vector(0.2))
    with mine.exclusive():
        assert mine.residual(2).tolist() == vector(0.2).tolist()


def test_in_a_simulation_of_one_process_no_state_is_written(tmp_path):
    state = ClientState(tmp_path)
    with state.exclusive():
        state.commit(1, None, vector(0.1))
    assert list(tmp_path.iterdir()) == []


def test_durable_needs_a_folder():
    with pytest.raises(ValueError, match="durable=True needs a folder"):
        ClientState(durable=True)


def archive(**parts):
    file = io.BytesIO()
    np.savez(file, **parts)
    return file.getvalue()


WHOLE = archive(version=np.int64(2), round=np.int64(4), after=vector(0.4))
DAMAGED = {
    "empty": b"",
    "noise": b"noise" * 100,
    "cut": WHOLE[: len(WHOLE) // 2],
    "other bits": WHOLE.replace(vector(0.4).tobytes(), vector(0.5).tobytes()),
    "no round": archive(version=np.int64(2)),
    "a round that is no number": archive(version=np.int64(2), round=np.array("four")),
    "pickled objects": archive(version=np.int64(2), round=np.int64(4), after=np.array([{}], object)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_state_is_refused_with_its_file_and_the_mend(tmp_path, name):
    (tmp_path / "state.npz").write_bytes(DAMAGED[name])
    with pytest.raises(StateError, match=rf"{tmp_path}/state\.npz: not a client's state .*; move it away"):
        residual(tmp_path, 4)


def test_the_state_of_another_version_is_refused_with_both_versions(tmp_path):
    (tmp_path / "state.npz").write_bytes(archive(version=np.int64(3), round=np.int64(4)))
    with pytest.raises(StateError, match=r"state\.npz: version 3, this fedq reads 2; move it away, or use that fedq"):
        residual(tmp_path, 4)


def test_a_damaged_state_is_left_for_a_person_to_look_at(tmp_path):
    (tmp_path / "state.npz").write_bytes(b"noise")
    with pytest.raises(StateError, match="not a client's state"):
        residual(tmp_path, 4)
    assert (tmp_path / "state.npz").read_bytes() == b"noise"


def test_the_written_file_is_the_one_that_the_damaged_ones_are_made_of(tmp_path):
    """Else they would be refused for another reason."""
    (tmp_path / "state.npz").write_bytes(WHOLE)
    assert residual(tmp_path, 4).tolist() == vector(0.4).tolist()


def test_a_crash_before_the_new_file_has_its_name_leaves_the_old_one(tmp_path, monkeypatch):
    commit(tmp_path, 1, None, vector(0.1))

    def crash(source, target):
        assert Path(source).stat().st_size > 0
        raise OSError("no power")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="no power"):
        commit(tmp_path, 2, vector(0.1), vector(0.2))
    monkeypatch.undo()
    assert residual(tmp_path, 1).tolist() == vector(0.1).tolist()
    assert {p.name for p in tmp_path.iterdir()} - {".lock"} == {"state.npz"}


def test_file_and_folder_are_on_disk_before_the_commit_returns(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    commit(tmp_path, 1, None, vector(0.1))
    assert len(synced) == 2
    assert synced[0].startswith(f"{tmp_path}/.state.npz")
    assert synced[1] == str(tmp_path)


HOLDER = """
import sys
from pathlib import Path
from fedq.client import ClientState
state = ClientState(Path(sys.argv[1]), durable=True)
print("asks", flush=True)
with state.exclusive():
    print("holds", flush=True)
    sys.stdin.read()
"""


def client_process(folder):
    """A process that serves one message until its stdin is closed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fedq.__file__).resolve().parents[1])}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"asks\n"
    return process


@pytest.mark.slow
def test_a_message_that_is_delivered_again_waits_until_the_first_is_served(tmp_path):
    with client_process(tmp_path) as first:
        assert first.stdout.readline() == b"holds\n"
        with client_process(tmp_path) as second:
            os.set_blocking(second.stdout.fileno(), False)
            time.sleep(0.5)
            assert second.stdout.read() is None
            first.stdin.close()
            os.set_blocking(second.stdout.fileno(), True)
            assert second.stdout.readline() == b"holds\n"


@pytest.mark.integration
def test_a_process_that_was_killed_holds_no_lock(tmp_path):
    with client_process(tmp_path) as killed:
        assert killed.stdout.readline() == b"holds\n"
        killed.kill()
    begun = time.monotonic()
    assert residual(tmp_path, NONE) is None
    assert time.monotonic() - begun < 2
