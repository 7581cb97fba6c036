"""`fedq privacy` and `fedq client` on real runs: what was spent, what is left, and who is told what."""

import json
import re
import sqlite3

import pytest
from typer.testing import CliRunner

import fedq
from fedq.cli import app
from fedq.privacy import Ledger, epsilon

WORDS = ["rounds=3", "clients=3", "model.hidden=[16]", "privacy=example", "train.steps=2", "train.epochs=null"]


pytestmark = pytest.mark.usefixtures("terminal_elsewhere")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three owners with budgets 1, 3 and 8 (the run's own) in one run."""
    words = [*WORDS, "privacy.target_epsilon=8", "privacy.budgets.0=1", "privacy.budgets.1=3"]
    return fedq.run(words, root=tmp_path_factory.mktemp("runs"), progress=False)


def fedq_says(*arguments, status=0):
    answer = CliRunner().invoke(app, [str(a) for a in arguments])
    assert answer.exit_code == status, answer.output
    assert "Traceback" not in answer.output
    return answer.stdout if status == 0 else " ".join(answer.stderr.split())


# --- budgets ---------------------------------------------------------------------------------------------


def test_each_client_s_ledger_stays_within_its_own_budget_and_all_take_part_in_every_round(run):
    assert run.private, run.privacy_reasons
    noises = {}
    for client, budget in (("0", 1.0), ("1", 3.0), ("2", 8.0)):
        rows = Ledger(run.folder / "clients" / client / "ledger.sqlite", access="read").rows()
        noises[client] = rows[0].spend.noise_multiplier
        assert len(rows) == 3
        assert 0.95 * budget < epsilon([row.spend.as_mechanism() for row in rows], 1e-5) <= budget
    assert noises["0"] > noises["1"] > noises["2"]


def test_a_client_that_spent_more_than_its_own_budget_makes_the_run_not_private(run, tmp_path):
    from dataclasses import replace

    from fedq.artifacts.run_artifacts import ClientFiles, evidence_of
    from fedq.config.config_file import read_config
    from fedq.experiment import build

    config = read_config(run.folder / "config.yaml")
    tighter = replace(config, privacy=replace(config.privacy, budgets={"0": 0.5, "1": 3}))
    files = ClientFiles(run.folder / "clients", run.folder.name)
    assert evidence_of(build(config), files, run.history, run.reply_fields)[1] is True
    _, private, reasons = evidence_of(build(tighter), files, run.history, run.reply_fields)
    assert private is False
    assert any("client 0: epsilon" in reason and "beyond its own budget 0.5" in reason for reason in reasons)


@pytest.mark.slow
def test_a_run_that_no_budget_allows_ends_before_its_first_round_with_a_status_of_its_own(tmp_path):
    words = [*WORDS, "privacy.target_epsilon=1", "privacy.ledger=ledgers", "partition=iid"]
    assert "in ledgers" not in fedq_says("run", *words, "--dry-run")
    assert "already spent" not in fedq_says("run", *words)
    dry = fedq_says("run", *words, "--dry-run")
    assert re.search(r"in ledgers +1\.00 +already spent", dry)
    assert "no budget for one more round: clients 0, 1, 2" in dry
    said = fedq_says("run", *words, "name=second", status=3)
    assert "ledgers: epsilon 1.00 already spent by the client that spent most; " in said
    assert "client 1 refused to take part: budget: epsilon would be " in said
    assert "the privacy budget of clients 0, 1, 2 does not allow one more round" in said
    (folder,) = (tmp_path / "outputs").glob("*/*-second-*")
    assert not (folder / "rounds.jsonl").exists() or (folder / "rounds.jsonl").read_text() == ""
    assert all(len(Ledger(path).rows()) == 3 for path in (tmp_path / "ledgers").glob("*/ledger.sqlite"))


@pytest.mark.slow
def test_one_client_without_budget_is_left_out_and_the_others_go_on(tmp_path):
    words = [*WORDS, "privacy.ledger=ledgers", "partition=iid", "privacy.target_epsilon=8"]
    fedq_says("run", *words, "privacy.budgets.0=1", "rounds=1")
    more = ["privacy.target_epsilon=20", "privacy.noise_multiplier=3", "privacy.budgets.0=1", "rounds=1"]
    second = fedq.run([*words, *more], progress=False)
    assert second.history[0].reasons == {"budget": 1}
    assert second.history[1].accepted == ["1", "2"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("privacy.budgets.7=1", "privacy.budgets.7=1: no client of the experiment"),
        ("privacy.budgets.0=0", r"privacy.budgets.0=0: must be an epsilon in"),
        ("privacy.budgets=3", "privacy.budgets=3: must be a mapping"),
    ],
)
def test_a_budget_that_is_none_is_refused(override, message):
    assert message in fedq_says("run", *WORDS, override, status=2)


# --- fedq privacy ledger ---------------------------------------------------------------------------------


def test_a_ledger_is_printed_with_what_it_comes_to(run):
    said = fedq_says("privacy", "ledger", run.folder / "clients" / "0" / "ledger.sqlite")
    assert "spent: epsilon 1.00 at delta 1e-05 in 3 rows" in said
    assert said.count(run.folder.name) >= 4


def test_all_ledgers_below_a_folder_are_checked(run):
    lines = fedq_says("privacy", "ledger", run.folder, "--json").splitlines()
    accounts = [json.loads(line) for line in lines]
    assert [round(account["epsilon"]) for account in accounts] == [1, 3, 8]
    assert accounts[0]["rows"][0]["mechanism"] == "discrete-gaussian"


def test_a_ledger_that_does_not_check_out_ends_with_status_1_until_a_person_decides(run, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setenv("COLUMNS", "120")  # what a person said stands in one line

    shutil.copytree(run.folder / "clients" / "0", tmp_path / "state")
    path = tmp_path / "state" / "ledger.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM spend WHERE id = 3")
    connection.close()
    said = fedq_says("privacy", "ledger", path, status=1)
    assert "1 spends are missing" in said
    assert "--accept REASON" in said
    assert "a person decided: " in fedq_says("privacy", "ledger", path, "--accept", "the disk was restored on Monday")
    assert "the disk was restored on Monday" in fedq_says("privacy", "ledger", path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE spend SET steps = 1 WHERE id = 1")
    connection.close()
    said = fedq_says("privacy", "ledger", path, "--accept", "never mind", status=1)
    assert "row 1 was changed" in said
    assert "--accept changed nothing" in said
    assert "Put the right file back" in fedq_says("privacy", "ledger", path, status=1)


@pytest.mark.slow
def test_a_run_over_a_ledger_that_was_reset_and_accepted_is_not_private_and_its_statement_says_so(tmp_path):
    words = [*WORDS, "privacy.ledger=ledgers", "partition=iid", "privacy.target_epsilon=8"]
    assert fedq.run(words, progress=False).private
    path = tmp_path / "ledgers" / "0" / "ledger.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM spend")
    connection.close()
    fedq_says("privacy", "ledger", path, "--accept", "spent for nothing")
    again = fedq.run([*words, "privacy.target_epsilon=20"], progress=False)
    assert again.private is False
    (decision,) = Ledger(path).tip().accepted
    assert f"spends may be missing, on a person's word: client 0, {decision}" in again.privacy_reasons
    assert "accepted 0 rows where the head said 3" in " ".join(fedq_says("privacy", "statement", again.folder).split())


def test_a_folder_without_a_ledger_is_named(tmp_path):
    assert "holds no ledger" in fedq_says("privacy", "ledger", tmp_path, status=2)
    assert "no such file or folder" in fedq_says("privacy", "ledger", tmp_path / "x.sqlite", status=2)


# --- fedq privacy plan -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_plan_shows_the_noise_of_the_run_and_of_others(tmp_path):
    from fedq.experiment import build

    words = [*WORDS, "privacy.target_epsilon=3"]
    said = fedq_says("privacy", "plan", *words)
    noise = build(fedq.config.compose(words)).plan.noise_multiplier
    assert f"multiplier {noise:.4g}" in said
    assert f"{noise:.4g} (" in said  # the same in the table, at epsilon 3 and 3 rounds
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_what_owners_budgets_ask_of_their_clients():
    words = [*WORDS, "clients=3", "privacy.target_epsilon=3", "privacy.budgets.0=1", "privacy.budgets.1=5"]
    said = " ".join(fedq_says("privacy", "plan", *words).split())
    assert "client 0 allows 1: noise multiplier" in said
    assert "client 1 allows 5: held to the run's 3" in said


def test_there_is_no_plan_without_privacy():
    assert "Add privacy=example" in fedq_says("privacy", "plan", "privacy=off", status=2)
    assert "target_epsilon=0" in fedq_says("privacy", "plan", "privacy=example", "privacy.target_epsilon=0", status=2)


# --- fedq privacy statement ------------------------------------------------------------------------------

# What an evaluation of a differential privacy guarantee asks for: NIST SP 800-226 (2025), sections 2 to 4.
CHECKLIST = {
    "the unit of privacy": ("unit", "one training example"),
    "neighbouring datasets": ("adjacency", "add or remove one example"),
    "several records of one person": ("adjacency", "k examples"),
    "privacy parameters": ("epsilon", "8.00 at delta 1e-05"),
    "the whole privacy curve": ("mu", "Gaussian mechanism"),
    "the budget and who set it": ("budget", "1 for client 0, 3 for client 1"),
    "the mechanism": ("mechanism", "Poisson-subsampled discrete Gaussian"),
    "sensitivity and how it is bounded": ("sensitivity", "at most 1 (L2)"),
    "composition and accounting": ("composition", "PRV"),
    "amplification by sampling": ("sampling", "Poisson"),
    "the trust model": ("adversary", "local model"),
    "what the adversary sees": ("adversary", "every message"),
    "the source of randomness": ("randomness", "AES-256-CTR"),
    "floating-point noise": ("mechanism", "in exact integers"),
    "side channels": ("not covered", "side channels"),
    "hyperparameter tuning": ("not covered", "tuning"),
    "post-processing": ("after the noise", "post-processing"),
    "data in the clear": ("not covered", "disk or memory"),
    "code of others": ("not covered", "the code of the bundle"),
    "public information": ("not covered", "public by declaration"),
    "what epsilon covers": ("epsilon", "the largest of any client's whole ledger"),
    "evidence": ("accounts", "3 ledgers, every one checked"),
}


@pytest.fixture(scope="module")
def statement(run):
    return json.loads(CliRunner().invoke(app, ["privacy", "statement", str(run.folder), "--json"]).stdout)


@pytest.mark.parametrize("asked", CHECKLIST)
def test_the_statement_says_what_a_guarantee_must_say(statement, asked):
    item, words = CHECKLIST[asked]
    said = statement[item]
    assert words in (" ".join(said) if isinstance(said, list) else said)


def test_the_statement_is_printed_for_a_person(run):
    said = fedq_says("privacy", "statement", run.folder)
    assert "private:         yes" in said
    assert max(len(line) for line in said.splitlines()) <= 111


def test_floating_point_noise_is_stated_as_a_caveat(tmp_path):
    floats = fedq.run([*WORDS, "privacy.noise=gaussian", "privacy.target_epsilon=8"], progress=False)
    said = " ".join(fedq_says("privacy", "statement", floats.folder).split())
    assert "floating-point Gaussian" in said
    assert "exact integers" not in said


@pytest.mark.slow
def test_whole_clients_are_stated_as_what_a_trusted_server_gives_them(tmp_path):
    words = ["rounds=3", "clients=4", "model.hidden=[16]", "train.steps=2", "train.epochs=null"]
    client = fedq.run([*words, "privacy=client", "privacy.client.target_epsilon=8"], progress=False)
    said = json.loads(fedq_says("privacy", "statement", client.folder, "--json"))
    assert "central model" in said["adversary"]
    assert said["unit"].startswith("one client, all its examples")
    assert "no amplification" in said["sampling"]
    both = fedq.run([*words, "privacy=both", "privacy.client.target_epsilon=8"], progress=False)
    said = json.loads(fedq_says("privacy", "statement", both.folder, "--json"))
    assert "one training example" in said["unit"]
    assert any("central model" in item for item in said["client-level DP"])


def test_a_run_without_privacy_has_no_statement(tmp_path):
    plain = fedq.run(["rounds=1", "clients=2", "privacy=off"], progress=False)
    assert "claims no privacy" in fedq_says("privacy", "statement", plain.folder, status=2)


def test_seeded_noise_is_stated_as_what_it_is(tmp_path):
    seeded = fedq.run([*WORDS, "privacy.noise=seeded", "privacy.target_epsilon=8"], progress=False)
    said = fedq_says("privacy", "statement", seeded.folder)
    assert "private:         NO" in said
    assert "anybody who knows it can subtract the noise" in " ".join(said.split())


# --- fedq client -----------------------------------------------------------------------------------------


def test_an_owner_sees_what_was_spent_and_what_is_left(run, tmp_path):
    import shutil

    home = run.folder / "clients" / "1"
    shutil.copytree(home, tmp_path / "runs" / "4711")
    for name in ("ledger.sqlite", "ledger.sqlite.head"):
        shutil.copy(home / name, tmp_path / name)
    (tmp_path / "declined.log").write_text("2026-01-01T00:00:00+00:00 'demo' policy: epsilon 8 of at most 3\n")
    (tmp_path / "policy.toml").write_text('unit = "example"\nmax_epsilon = 3\nmax_delta = 1e-5\n')
    said = fedq_says("client", "status", tmp_path, "--epsilon", "5", "--policy", tmp_path / "policy.toml")
    assert "epsilon 3.00 at delta 1e-05" in said
    assert "epsilon 0.00 of your policy's 3" in said  # which is stricter than the budget
    assert "3 updates" in said
    assert "1 request turned away" in said
    assert "epsilon 8 of at most 3" in said
    assert "more than epsilon 3 are declined" in said


def test_an_owner_of_a_broken_ledger_is_told(run, tmp_path):
    import shutil

    shutil.copytree(run.folder / "clients" / "0", tmp_path / "state")
    (tmp_path / "state" / "ledger.sqlite.head").unlink()
    assert "its tip" in fedq_says("client", "status", tmp_path / "state", status=2)
    assert "no such folder" in fedq_says("client", "status", tmp_path / "nowhere", status=2)


def test_a_bundle_s_digest_is_printed(tmp_path):
    from fedq.app.bundle import bundle_digest
    from fedq.flower import private as flower
    from fedq.new.app import make_app

    (tmp_path / "app.fab").write_bytes(flower.bundle(make_app(tmp_path / "clinics").folder))
    assert fedq_says("client", "digest", tmp_path / "app.fab").strip() == bundle_digest(tmp_path / "app.fab")
    (tmp_path / "no.fab").write_text("x")
    assert "not a bundle" in fedq_says("client", "digest", tmp_path / "no.fab", status=2)
    assert "no such file" in fedq_says("client", "digest", tmp_path / "none.fab", status=2)


def test_a_deleted_ledger_shows_while_its_head_is_there(run, tmp_path):
    import shutil

    shutil.copytree(run.folder / "clients" / "0", tmp_path / "state")
    (tmp_path / "state" / "ledger.sqlite").unlink()
    assert "no such ledger, though" in fedq_says("privacy", "ledger", tmp_path / "state", status=1)
    assert "no such ledger, though" in fedq_says("client", "status", tmp_path / "state", status=2)


def test_clients_under_other_names_are_another_deal(tmp_path):
    """Else each new set of names would begin new accounts over the same examples."""
    words = [*WORDS, "privacy.ledger=ledgers", "partition=iid", "privacy.target_epsilon=3"]
    fedq.run([*words, "names=[a,b,c]"], progress=False)
    for names in ("[d,e,f]", "[b,a,c]"):
        assert "a new partition would spend the same examples twice" in fedq_says(
            "run", *words, f"names={names}", status=2
        )


@pytest.mark.slow
def test_whole_clients_have_a_plan_too():
    said = fedq_says("privacy", "plan", "privacy=client", "clients=100", "privacy.client.target_epsilon=3")
    assert "added by the server" in said
    assert "for each client" in " ".join(said.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["privacy.target_epsilon=3"], "privacy: epsilon 3.00 of 3 at delta 1e-05"),
        (["privacy=client", "privacy.client.target_epsilon=3"], "added by the server"),
    ],
)
def test_what_a_run_will_cost_is_printed_before_it_trains(words, told):
    plain = [w for w in WORDS if w != "privacy=example" or "privacy=client" not in words]
    answer = CliRunner().invoke(app, ["run", *plain, *words, "rounds=1"])
    assert answer.exit_code == 0, answer.output
    assert told in answer.stderr
