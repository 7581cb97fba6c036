"""Runs that protect client-level DP: what their files say, and that each lost piece of evidence is missed."""

import json
import shutil
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import fedq
from fedq.app.serving import serve
from fedq.artifacts.client_level import ServerFiles, complete_rows, server_evidence
from fedq.artifacts.statement import statement_of
from fedq.cli import app
from fedq.config import ConfigError
from fedq.console import final_table
from fedq.experiment import build
from fedq.privacy import Ledger, Mechanism, epsilon, is_client_private
from fedq.results import read_result
from fedq.runtime.forecast import forecast, held_by_server
from fedq.runtime.local import in_process
from fedq.server.loop import Round, Scores
from fedq.server.roster import BudgetSpentError
from fedq.server.round_aggregate import Traffic
from tests.quick import compose

pytestmark = pytest.mark.integration

WORDS = ["clients=6", "rounds=2", "fraction=0.5", "model.hidden=[8]", "quant=off", "codec=int8", "train.epochs=null"]
WORDS += ["train.steps=1", "privacy.accountant=rdp"]
CLIENT, BOTH = [*WORDS, "privacy=client"], [*WORDS, "privacy=both"]
SECRET = [*CLIENT, "privacy.client.sampling=poisson"]
SEEDED = ["privacy.noise=seeded"]


def run(folder, *overrides, **objects):
    return fedq.run(overrides, root=folder, progress=False, **objects)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs"), *CLIENT)


def ended(number, asked, values):
    return Round(number, "ok", Scores(), None, 0, Traffic(), 0.0, asked=asked, values=values)


@pytest.fixture
def judged(finished, tmp_path):
    """The run's server files, free to be damaged, and what is then said of it."""
    shutil.copytree(finished.folder / "server", tmp_path / "server")
    experiment = build(compose(CLIENT))

    asked = [json.loads(line)["asked"] for line in (tmp_path / "server" / "replies.jsonl").read_text().splitlines()]

    class Judged:
        home, rounds = tmp_path / "server", tuple(ended(n, asked[n], experiment.layout.size) for n in (1, 2))

        def reasons(self, *, rounds=None, run=finished.folder.name):
            files = ServerFiles(self.home, run, "seed", self.home / "ledger.sqlite")
            return is_client_private(server_evidence(experiment, experiment.client_plan, files, rounds or self.rounds))

        def rewrite(self, change):
            path = self.home / "evidence.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))

    return Judged()


def test_a_run_says_what_it_protects_from_whom_and_at_what_cost(finished):
    assert (finished.private, finished.privacy_reasons, finished.delta) == (True, [], 1e-5)
    assert finished.privacy_unit.startswith("one client, all its examples")
    assert "the server is trusted" in finished.privacy_unit
    assert 7.9 < finished.epsilon <= 8
    said = finished.client_level
    assert (said["adjacency"], said["rounds_charged"], said["sampling"]) == ("zero-out-one", 1, "cyclic")
    assert read_result(finished.folder).client_level == said


def test_rows_show_what_was_spent_and_no_row_who_answered(finished):
    assert [row.epsilon for row in finished.history] == [0.0, finished.epsilon, finished.epsilon]
    text = (finished.folder / "rounds.jsonl").read_text() + (finished.folder / "result.json").read_text()
    for row in map(json.loads, (finished.folder / "rounds.jsonl").read_text().splitlines()):
        assert (row["accepted"], row["rejected"], row["reasons"], row["train_loss"]) == ([], [], {}, None)
    assert "rejected" in text
    kept = [json.loads(line) for line in (finished.folder / "server" / "replies.jsonl").read_text().splitlines()]
    assert [sorted(line["accepted"]) == sorted(line["asked"]) for line in kept] == [True, True, True]
    assert [len(row.accepted) for row in complete_rows(finished.folder, finished.history)] == [0, 3, 3]


def test_with_all_its_files_the_run_is_private(judged):
    assert judged.reasons() == (True, [])


def lost_ledger(judged):
    (judged.home / "ledger.sqlite").unlink()


def edited_ledger(judged):
    with sqlite3.connect(judged.home / "ledger.sqlite") as connection:
        connection.execute("UPDATE spend SET noise_multiplier = 100 WHERE id = 1")


def lost_evidence(judged):
    (judged.home / "evidence.jsonl").unlink()


def accepted_ledger(judged):
    Ledger(judged.home / "ledger.sqlite").accept("the disk was restored")


def changed(**values):
    return lambda judged: judged.rewrite(lambda lines: [{**lines[0], **values}, *lines[1:]])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lost_ledger, "the server's ledger was not verified"),
        (edited_ledger, "the server's ledger was not verified"),
        (accepted_ledger, "accepted 2 rows where the head said 2: the disk was restored"),
        (lost_evidence, "round 1: no noise was added"),
        (lambda judged: judged.rewrite(lambda lines: lines[:1]), "without evidence of noise in round 2"),
        (changed(noise_source="seeded"), "round 1: noise that others can reproduce"),
        (changed(noise_multiplier=0.1), "noise multiplier 0.1"),
        (changed(sum_multiplier=0.0), "noise of 0 clips"),
        (changed(clip_norm=7.0), "clip norm 7.0, 1.0 spent"),
        (changed(noised_scalars=5), "5 values noised"),
        (changed(divisor=6), "divided by 6, a cohort is 3"),
        (changed(spend_row_id=2), "stands for several rounds"),
    ],
)
def test_without_a_piece_of_evidence_it_is_not(judged, damage, reason):
    damage(judged)
    private, reasons = judged.reasons()
    assert not private
    assert any(reason in said for said in reasons), reasons


def test_the_evidence_of_another_run_is_none(judged):
    private, reasons = judged.reasons(run="another")
    assert not private
    assert "round 1: no spend in the ledger" in reasons


def test_a_client_that_was_asked_more_often_than_accounted_is_seen(judged):
    same = [replace(what, asked=["0", "1", "2"]) for what in judged.rounds]
    private, reasons = judged.reasons(rounds=same)
    assert not private
    assert "one client counted in 2 rounds, the noise is for 1" in reasons


@pytest.mark.slow
@pytest.mark.parametrize("words", [CLIENT, [*CLIENT, "privacy.client.clipping=adaptive"], SECRET], ids=" ".join)
def test_the_same_bits_come_from_one_and_two_workers_with_seeded_noise_which_is_not_private(tmp_path, words):
    one, two = run(tmp_path, *words, *SEEDED), run(tmp_path, *words, *SEEDED, "runtime.workers=2")
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, two.arrays[name])
    assert not one.private
    assert any("noise that others can reproduce" in why for why in one.privacy_reasons)


def test_an_adaptive_clip_is_accounted_for(tmp_path):
    result = run(tmp_path, *CLIENT, "privacy.client.clipping=adaptive")
    assert (result.private, result.privacy_reasons) == (True, [])
    assert result.client_level["clip_quantile"] == 0.5
    assert 7.9 < result.epsilon <= 8


def test_two_runs_differ(tmp_path):
    one, two = run(tmp_path, *CLIENT), run(tmp_path, *CLIENT)
    assert any((one.arrays[name] != two.arrays[name]).any() for name in one.arrays)


def test_secret_cohorts_are_private_against_whoever_does_not_watch_the_network(tmp_path):
    result = run(tmp_path, *SECRET, "rounds=5")
    assert (result.private, result.rounds) == (True, 5)
    assert "not the network" in result.client_level["adversary"]
    assert "bytes_down" in result.client_level["not_covered"]
    assert result.client_level["rounds_charged"] == 5


def test_both_guarantees_are_stated_and_the_run_is_private_where_both_hold(tmp_path):
    result = run(tmp_path, *BOTH)
    assert (result.private, result.privacy_reasons) == (True, [])
    assert result.privacy_unit == "one training example of one client (add or remove)"
    assert result.client_level["unit"].startswith("one client")
    assert {name for name in result.reply_fields if "hello" not in name} == {"fedq.packets.update", "fedq.reply.round"}


def test_both_where_one_does_not_hold_is_not_private(tmp_path):
    result = run(tmp_path, *BOTH, "privacy.client.target_epsilon=30")
    assert not result.private
    assert [why for why in result.privacy_reasons if why.startswith("client-level DP: epsilon")]


def test_a_client_whose_code_fails_costs_no_round(tmp_path):
    """Whether it fails may depend on its data: nothing that is published does."""

    class Failing(torch.nn.Linear):
        def forward(self, x):
            if self.training and len(x) != 2:
                raise RuntimeError("seen")
            return super().forward(x.flatten(1))

    result = run(tmp_path, *CLIENT, model=Failing(64, 10))
    assert (result.rounds, result.status, result.private) == (2, "finished", True)
    assert [row.status for row in result.history] == ["initial", "ok", "ok"]
    assert [row.clients for row in result.history] == [0, 0, 0]


def test_a_model_with_arrays_that_no_noise_covers_is_refused():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10))
    with pytest.raises(ConfigError, match=r"1\.num_batches_tracked is not averaged"):
        build(compose(CLIENT), model=net)


def test_without_a_test_set_no_client_is_asked_to_judge(tmp_path):
    from fedq.data import digits

    result = run(tmp_path, *CLIENT, data=replace(digits(), test=None))
    assert (result.accuracy_source, result.accuracy) == ("none", None)
    assert [row.loss for row in result.history] == [None, None, None]


def test_a_ledger_that_cannot_be_written_ends_the_run_with_the_model_of_the_round_before(tmp_path):
    def damage(row):
        if row.round == 1:
            (tmp_path / "run" / "server" / "ledger.sqlite").write_bytes(b"damaged")

    experiment = build(compose(CLIENT))
    strategy, folder = experiment.strategy(), tmp_path / "run"
    folder.mkdir()
    link = in_process(experiment, strategy, folder)
    result = serve(experiment, strategy, link, folder=folder, watch=damage, clients=None)
    assert (result.status, result.rounds, result.private) == ("failed", 1, False)
    assert "not a complete ledger" in result.status_reason
    assert "the server's ledger was not verified" in result.privacy_reasons
    assert len((folder / "server" / "evidence.jsonl").read_text().splitlines()) == 1


def test_a_forecast_says_what_whole_clients_will_spend_and_how_long_the_noise_is():
    experiment = build(compose(BOTH))
    told, plan = forecast(experiment).client_level, experiment.client_plan
    assert (told.epsilon, told.rounds, told.sample_rate) == (plan.epsilon(1), 1, 1.0)
    assert told.noise_norm == pytest.approx(plan.noise_multiplier * experiment.layout.size**0.5 / 3)
    assert forecast(build(compose(SECRET))).participations == 2


def test_the_report_names_both_guarantees(tmp_path, capsys):
    result = run(tmp_path, *BOTH)
    Console(width=200).print(final_table(result))
    shown = capsys.readouterr().out
    assert "protecting one training example of one client" in shown
    assert "protecting one client, all its examples" in shown


def test_a_run_that_is_stopped_after_a_spend_counts_it(tmp_path):
    """The model is evaluated after the step: stopped there, the round did not end, and what it spent is told."""
    experiment = build(compose(CLIENT))
    strategy, folder = experiment.strategy(), tmp_path / "run"
    folder.mkdir()
    evaluate, calls = experiment.trainer.evaluate, []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # test and validation set before round 1, then the test set after it
            raise KeyboardInterrupt
        return evaluate(*arguments)

    experiment.trainer.evaluate = stopping
    link = in_process(experiment, strategy, folder)
    result = serve(experiment, strategy, link, folder=folder, watch=lambda row: None, clients=None)
    assert (result.status, result.rounds) == ("interrupted", len(result.history) - 1)
    spent = len((folder / "server" / "evidence.jsonl").read_text().splitlines())
    assert spent == result.rounds + 1
    assert result.epsilon == experiment.client_plan.epsilon(spent)


# --- ledgers that outlive a run --------------------------------------------------------------------------


def test_two_runs_of_one_ledger_are_one_account(tmp_path):
    """Each run takes what one release at z costs; of the second, rows, result and statement say what both cost."""
    words = [*CLIENT, f"privacy.ledger={tmp_path / 'ledgers'}", "privacy.client.noise_multiplier=4"]
    words += ["privacy.client.target_epsilon=null"]
    first, second = run(tmp_path, *words), run(tmp_path, *words)
    assert first.epsilon == epsilon([Mechanism(4.0, 1.0, 1)], 1e-5, accountant="rdp")
    assert second.epsilon == epsilon([Mechanism(4.0, 1.0, 2)], 1e-5, accountant="rdp")
    assert [row.epsilon for row in second.history] == [first.epsilon, second.epsilon, second.epsilon]
    assert (second.private, second.privacy_reasons) == (True, [])
    assert second.client_level["other_runs"] == 1
    assert len(Ledger(tmp_path / "ledgers" / "server.sqlite").rows()) == 4
    assert not (second.folder / "server" / "ledger.sqlite").exists()
    said = statement_of(second.folder)
    assert "spent most in the 2 runs in the server's ledger" in said["epsilon"]
    assert "exact discrete Gaussian noise" in said["mechanism"]
    assert not any("floating-point Gaussian" in what for what in said["not covered"])


@pytest.mark.hostile
def test_a_run_that_the_ledger_has_no_budget_for_is_refused_before_any_client_is_asked(tmp_path):
    """Two runs of a target of 8 once cost a client about 12, and each said 8."""
    words = [*CLIENT, f"privacy.ledger={tmp_path / 'ledgers'}"]
    run(tmp_path, *words)
    with pytest.raises(
        BudgetSpentError, match=r"client-level DP: budget: epsilon would be .* of 8 .*take fewer rounds"
    ):
        run(tmp_path, *words)
    assert len(Ledger(tmp_path / "ledgers" / "server.sqlite").rows()) == 2
    told = held_by_server(build(compose(words)))
    assert 7.9 < told.epsilon <= told.target == 8 < told.after
    answer = CliRunner().invoke(app, ["run", *words])
    assert answer.exit_code == 3
    assert "with this run, above the target 8: refused" in answer.output


def test_data_that_were_dealt_anew_take_no_budget_from_a_ledger_of_others(tmp_path):
    words = [*CLIENT, f"privacy.ledger={tmp_path / 'ledgers'}"]
    run(tmp_path, *words)
    with pytest.raises(ConfigError, match="a new partition would spend the same examples twice"):
        build(compose([*words, "seed=1"]))


def test_both_kinds_of_ledgers_share_one_folder(tmp_path):
    words = [*BOTH, f"privacy.ledger={tmp_path / 'ledgers'}", "privacy.target_epsilon=20"]
    words += ["privacy.noise_multiplier=4", "privacy.client.noise_multiplier=4", "privacy.client.target_epsilon=null"]
    run(tmp_path, *words)
    second = run(tmp_path, *words)
    assert (second.private, second.privacy_reasons) == (True, [])
    assert {path.name for path in (tmp_path / "ledgers").glob("*.sqlite")} == {"server.sqlite"}
    assert len(list((tmp_path / "ledgers").glob("*/ledger.sqlite"))) == 6


def test_float_noise_is_named_in_the_statement(tmp_path):
    said = statement_of(run(tmp_path, *CLIENT, "privacy.noise=gaussian").folder)
    assert "floating-point Gaussian noise on the sum" in said["mechanism"]
    assert any("floating-point Gaussian: epsilon is that of the ideal" in what for what in said["not covered"])
