"""What a client, its ledger and a trusted server write is for their owner alone, whatever the umask."""

import os
import sqlite3
import stat
from dataclasses import replace

import numpy as np
import pytest

import fedq
from fedq.client.state import ClientState, note_declined
from fedq.core.durable import append_to_private, make_private_folder, write_bytes
from fedq.privacy import DPEvidence, Ledger
from fedq.privacy.ledger_tip import LedgerTip, write_tip
from tests.privacy.ledgers import SPEND

RUN = ["rounds=1", "clients=2", "model.hidden=[8]", "quant=off", "train.steps=2", "train.epochs=null"]
EVIDENCE = DPEvidence("os", 2, 1.0, 1.0, 0.1, 1, 10)

pytestmark = pytest.mark.hostile


@pytest.fixture(params=[0, 0o022], ids=["umask 0", "umask 022"])
def _umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def open_to_others(folder):
    """Name -> mode of what somebody else may look at, the folder included."""
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert len(modes) > 1, "nothing was written"
    return {str(path): oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)}


@pytest.mark.usefixtures("_umask")
def test_all_that_a_client_keeps_is_its_owner_s_alone(tmp_path):
    """The files were once 0644 under the usual umask, and 0666 under none."""
    home = tmp_path / "state" / "fedq"
    note_declined(home, "run", "policy: too weak")
    ledger = Ledger(home / "ledger.sqlite")
    ledger.spend(SPEND)
    ledger.spend(replace(SPEND, round=2))
    write_tip(tmp_path / "state" / "heads" / "ledger.head", LedgerTip(0, ""))
    state = ClientState(home / "runs" / "4711", durable=True)
    with state.exclusive():
        state.commit(1, None, np.zeros(3, np.float32))
        state.note_evidence(1, EVIDENCE)
        state.log("round=1")
    assert {"ledger.sqlite.lock", "ledger.sqlite.head", "declined.log"} <= set(os.listdir(home))
    assert {".lock", "state.npz", "evidence.jsonl", "log.txt"} <= set(os.listdir(home / "runs" / "4711"))
    assert open_to_others(tmp_path / "state") == {}


@pytest.mark.usefixtures("_umask")
def test_a_journal_of_the_ledger_is_its_owner_s_alone(tmp_path):
    """It lies there while a spend is written, and after a crash in the middle."""
    folder = tmp_path / "state"
    ledger = Ledger(folder / "ledger.sqlite")
    connection = sqlite3.connect(ledger.path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("DELETE FROM spend")
    connection.execute("PRAGMA user_version = 2")
    assert (folder / "ledger.sqlite-journal").exists()
    assert open_to_others(folder) == {}
    connection.close()


@pytest.mark.integration
@pytest.mark.usefixtures("_umask")
def test_the_clients_and_the_server_s_own_folder_of_a_run_are_for_their_owner_alone(tmp_path):
    words = [
        "privacy=both",
        "privacy.target_epsilon=8",
        "privacy.client.target_epsilon=8",
        "privacy.client.target_delta=1e-3",
    ]
    folder = fedq.run([*RUN, *words], root=tmp_path, progress=False).folder
    assert open_to_others(folder / "clients") == {}
    assert open_to_others(folder / "server") == {}


def test_a_folder_that_is_there_keeps_its_mode_and_so_does_a_file(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o750)
    folder.chmod(0o750)
    make_private_folder(folder)
    (folder / "log.txt").touch()
    (folder / "log.txt").chmod(0o640)
    append_to_private(folder / "log.txt").close()
    assert [stat.S_IMODE(p.stat().st_mode) for p in (folder, folder / "log.txt")] == [0o750, 0o640]


def test_what_is_no_secret_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "result.json", b"{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "result.json").stat().st_mode) == 0o640
