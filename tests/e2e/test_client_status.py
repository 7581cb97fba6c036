"""`fedq client status`: what an owner is told is left is what its client would still let out."""

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import fedq
from fedq.cli import app
from fedq.privacy import Ledger, epsilon, tip_in

WORDS = ["rounds=2", "clients=2", "model.hidden=[8]", "quant=off", "train.steps=2", "train.epochs=null"]
DP = [*WORDS, "privacy=example", "privacy.target_epsilon=3", "evaluate=dp", "privacy.evaluation_epsilon=0.5"]

pytestmark = pytest.mark.usefixtures("terminal_elsewhere")


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The state-dir of a client whose budget of 3 one run has spent, as a deployment lays it out."""
    run = fedq.run(DP, root=tmp_path_factory.mktemp("runs"), progress=False)
    home, folder = run.folder / "clients" / "1", tmp_path_factory.mktemp("state")
    shutil.copytree(home, folder / "runs" / "4711")
    for name in ("ledger.sqlite", "ledger.sqlite.head"):
        shutil.copy(home / name, folder / name)
    return folder


@pytest.fixture
def policy(tmp_path):
    def written(unit="example", most="3", delta="1e-5"):
        path = tmp_path / "policy.toml"
        path.write_text(f'unit = "{unit}"\nmax_epsilon = {most}\nmax_delta = {delta}\n')
        return path

    return written


def status(*arguments, code=0):
    answer = CliRunner().invoke(app, ["client", "status", *map(str, arguments)])
    assert answer.exit_code == code, answer.output
    assert "Traceback" not in answer.output
    return " ".join((answer.stdout if code == 0 else answer.stderr).split())


def spent(state, delta):
    return epsilon([row.spend.as_mechanism() for row in Ledger(state / "ledger.sqlite").rows()], delta)


def test_a_folder_without_a_ledger_is_said_to_be_none(tmp_path):
    assert "no ledger here" in status(tmp_path, "--epsilon", "3")


def test_one_run_alone_costs_what_all_do_at_the_same_delta(state):
    said = status(state, "--epsilon", "12", "--delta", "1e-6")
    whole = f"{spent(state, 1e-6):.2f}"
    assert f"spent epsilon {whole}" in said
    assert f"{whole} 1e-06" in said.partition("epsilon alone")[2]


# --- what is left --------------------------------------------------------------------------------------


def test_a_policy_stricter_than_the_budget_decides_what_is_left(state, policy):
    """The client holds every run to 3: of a budget of 5 it would let nothing more out."""
    assert 2.99 < spent(state, 1e-5) <= 3
    assert "left epsilon 0.00 of your policy's 3, at delta 1e-05" in status(
        state, "--epsilon", "5", "--policy", policy()
    )


def test_a_policy_alone_is_a_budget(state, policy):
    said = status(state, "--policy", policy(most="4"))
    assert "left epsilon 1.00 of your policy's 4" in said or "left epsilon 1.01 of your policy's 4" in said
    assert "no budget" not in said


def test_a_budget_stricter_than_the_policy_decides(state, policy):
    said = status(state, "--epsilon", "4", "--policy", policy(most="9"))
    assert "of your budget 4, at delta 1e-05" in said


def test_without_limits_there_is_nothing_of_which_some_is_left(state, policy):
    assert "no budget: each run" in status(state)
    assert "no budget: each run" in status(state, "--policy", policy(most="inf"))


def test_what_is_left_is_counted_at_the_owner_s_delta(state, policy):
    """At a smaller delta the same spends come to a larger epsilon."""
    assert spent(state, 1e-7) > 3.1
    assert f"spent epsilon {np.ceil(100 * spent(state, 1e-7)) / 100:.2f} at delta 1e-07" in status(
        state, "--epsilon", "9", "--delta", "1e-7"
    )
    said = status(state, "--epsilon", "9", "--delta", "1e-6", "--policy", policy(most="20", delta="1e-7"))
    assert "of your budget 9, at delta 1e-07" in said
    assert "at delta 1e-05" in status(state, "--epsilon", "9")  # as in a node config that names no delta


def test_runs_that_the_ledger_does_not_count_are_named(state, policy):
    assert "not counted runs with privacy=off or privacy=client" in status(state)
    assert "not counted runs with privacy=client" in status(state, "--policy", policy(unit="client"))
    for barred in (["--policy", policy()], ["--epsilon", "5"], ["--epsilon", "5", "--delta", "1e-6"]):
        assert "not counted" not in status(state, *barred)


@pytest.mark.parametrize("option", ["--epsilon", "--delta"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1", "0", "-inf", "1e9"])
def test_a_limit_that_is_none_is_refused(state, option, value):
    said = status(state, f"{option}={value}", code=2)
    assert f"{option}={float(value)}: must be a number" in said


# --- what left -----------------------------------------------------------------------------------------


def test_noisy_counts_left_too(state):
    """Two rounds of training, and one evaluation with noise, each in the ledger."""
    assert len(Ledger(state / "ledger.sqlite").rows()) == 3
    assert "4711 2 updates" in status(state)
    assert ", 1 noisy count" in status(state)


def test_scores_without_noise_left_where_privacy_was_off(tmp_path):
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 2, 60))  # and no test set for the server
    run = fedq.run([*WORDS, "privacy=off"], data=data, root=tmp_path / "runs", progress=False)
    assert run.accuracy_source == "clients"
    (tmp_path / "state" / "runs").mkdir(parents=True)
    shutil.copytree(run.folder / "clients" / "1", tmp_path / "state" / "runs" / "4712")
    said = status(tmp_path / "state")
    assert "spent nothing" in said
    assert "2 updates" in said
    asked = sum(row.accuracy is not None for row in run.history)
    assert asked > 0
    assert f", {asked} scores without noise" in said


def test_a_text_in_the_log_that_looks_like_an_update_is_none(tmp_path):
    (tmp_path / "runs" / "7").mkdir(parents=True)
    (tmp_path / "runs" / "7" / "log.txt").write_text(
        "round=1 refused: declined\nValueError: packet_bytes=999\nround=2 examples=5 loss=0.1 packet_bytes=100\n"
    )
    assert "7 1 update, 100 B" in status(tmp_path)


def test_status_says_where_the_head_lies_and_warns_where_it_is_beside_the_ledger(state, tmp_path):
    assert "ledger's tip beside the ledger: restoring both is not noticed" in status(state)
    moved = tmp_path / "state"
    shutil.copytree(state, moved)
    head = tip_in(tmp_path / "heads", moved / "ledger.sqlite")
    head.parent.mkdir()
    shutil.move(moved / "ledger.sqlite.head", head)
    assert head.name in status(moved, "--head-dir", tmp_path / "heads").replace(" ", "")  # a long path is folded
    assert "its tip" in status(moved, code=2)


def test_a_ledger_is_checked_against_the_head_in_a_folder_for_heads(state, tmp_path):
    head = tip_in(tmp_path, state / "ledger.sqlite")
    shutil.copy(state / "ledger.sqlite.head", head)
    answer = CliRunner().invoke(app, ["privacy", "ledger", str(state / "ledger.sqlite"), "--head", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
