"""`fedq audit` on real runs and configs: tables, JSON, exit statuses."""

import json

import pytest
from typer.testing import CliRunner

import fedq
from fedq.cli import app

WORDS = ["rounds=1", "clients=2", "model.hidden=[16]", "data.nominal_examples=1258"]
DP = [*WORDS, "privacy=example", "privacy.accountant=rdp", "train.epochs=null", "train.steps=2"]
QUICK = ["--canaries", "400", "--pairs", "20"]


pytestmark = pytest.mark.usefixtures("terminal_elsewhere")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fedq.run([*DP, "quant=int8", "quant.weight_range=63"], root=tmp_path_factory.mktemp("runs"), progress=False)


def fedq_says(*arguments, status=0):
    answer = CliRunner().invoke(app, ["audit", *(str(a) for a in arguments)])
    if status == 0 and answer.exit_code == 1:  # one audit of a hundred flags a right mechanism by chance: two do not
        answer = CliRunner().invoke(app, ["audit", *(str(a) for a in arguments)])
    assert answer.exit_code == status, answer.output
    assert "Traceback" not in answer.output
    return answer.stdout if status < 2 else " ".join(answer.stderr.split())


def test_a_right_run_has_no_finding_and_a_score_before_and_after_int8(run):
    found = json.loads(fedq_says(run.folder, *QUICK, "--json"))
    assert not found["flagged"]
    assert {check["name"] for check in found["checks"]} >= {
        "white-box canaries",
        "noise size",
        "sensitivity",
        "account",
    }
    assert [score["model"] for score in found["membership"]] == ["before int8", "after int8"]
    assert found["bounds"][0]["one_run_curve"] <= found["bounds"][0]["claimed_epsilon"]
    assert found["left_out"] == []


@pytest.mark.slow
def test_a_run_s_config_file_is_audited_without_its_model(run):
    page = fedq_says(run.folder / "config.yaml", *QUICK, "--repeats", "20")
    for words in ("nothing found", "proves no privacy", "20 runs with one canary or none", "not looked at: membership"):
        assert words in page


@pytest.mark.slow
def test_views_of_examples_change_no_draw_and_no_message():
    page = fedq_says(*DP, "privacy.augmentations=2", *QUICK)
    assert "control flow" in page
    assert "nothing found" in page


def test_noise_of_the_server_is_not_called_none():
    words = [*WORDS, "privacy=client", "privacy.client.target_epsilon=8"]
    assert "privacy=client: the noise is the server's" in fedq_says(*words, *QUICK, status=2)


@pytest.mark.slow
def test_seeded_noise_is_a_finding_and_the_status_says_so():
    page = fedq_says(*DP, "privacy.noise=seeded", *QUICK, status=1)
    assert "the mechanism is not what it claims to be" in page
    assert "noise fresh: it is not so" in page


@pytest.mark.slow
def test_a_ledger_that_was_touched_is_a_finding(run, tmp_path):
    import shutil
    import sqlite3

    folder = shutil.copytree(run.folder, tmp_path / "copy")
    with sqlite3.connect(next(folder.glob("clients/*/ledger.sqlite"))) as ledger:
        ledger.execute("UPDATE spend SET noise_multiplier = 99.0")
    ledger.close()
    assert "row 1 was changed after it was written" in " ".join(fedq_says(folder, *QUICK, status=1).split())


def test_a_run_without_privacy_gets_its_membership_score_alone():
    folder = fedq.run(WORDS, root="outputs", progress=False).folder
    found = json.loads(fedq_says(folder, "--json"))
    assert (found["checks"], found["flagged"]) == ([], False)
    assert [score["model"] for score in found["membership"]] == ["before int8"]
    assert 0 <= found["membership"][0]["low"] <= found["membership"][0]["auc"] <= found["membership"][0]["high"] <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["privacy=off claims nothing", "privacy=example"]),
        (["nowhere"], ["nowhere: no such run"]),
        (["nowhere", "rounds=1"], ["nowhere: give one run's folder", "not both"]),
        (["privacy=exampel"], ["privacy", "example"]),
        (["privacy=example", "--pairs", "0"], ["--pairs 0: must be 1 to 1,000,000"]),
        (["privacy=example", "--canaries", "10"], ["--canaries 10: must be 200 to 100,000"]),
        (["privacy=example", "--frobnicate"], ["--frobnicate: no option of fedq audit"]),
    ],
)
def test_wrong_arguments_are_refused_with_the_mend(arguments, words):
    told = fedq_says(*arguments, status=2)
    for word in words:
        assert word in told


LOADER = """
import numpy as np
from fedq.data import Dataset, Examples

def load():
    random = np.random.default_rng(0)
    rows = random.normal(2, 3, size=(300, 5))
    targets = (rows[:, 0] > 2).astype(np.int64)
    rows = (rows - rows.mean(0)) / rows.std(0)
    train = Examples(rows.astype(np.float32), targets)
    return Dataset(train, None, None, num_outputs=2, name="mine", fitted_on_private_data=False)
"""


@pytest.mark.slow
def test_a_scaler_that_a_loader_fitted_and_does_not_own_up_to_is_a_finding(tmp_path):
    (tmp_path / "audited_loader.py").write_text(LOADER)
    words = [*DP, "model=linear", "data._target_=audited_loader.load", "data.nominal_examples=300"]
    words = [word for word in words if not word.startswith("model.")]
    page = fedq_says(*words, *QUICK, "--allow", "audited_loader", status=1)
    assert "it is not so that no scaler was fitted on the rows it scales" in " ".join(page.split())
