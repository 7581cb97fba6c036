"""evaluate=dp on real runs: what leaves is two noisy counts a client, paid for, once; evaluate=off reads nothing."""

import numpy as np
import pytest

import fedq
from fedq.data.split import held_out_by_content
from fedq.privacy import Ledger
from fedq.runtime import check

WORDS = ["rounds=2", "clients=3", "model.hidden=[16]", "train.steps=2", "train.epochs=null"]
DP = [*WORDS, "privacy=example", "privacy.target_epsilon=8", "evaluate=dp", "privacy.evaluation_epsilon=2"]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return fedq.run(DP, root=tmp_path_factory.mktemp("runs"), progress=False)


def rows(result, client):
    return Ledger(result.folder / "clients" / client / "ledger.sqlite", access="read").rows()


def test_the_run_is_private_and_says_how_sure_its_accuracy_is(result):
    assert result.private, result.privacy_reasons
    assert result.accuracy_source == "noisy_counts"
    assert 0 <= result.accuracy <= 1
    assert 0 < result.accuracy_error < 0.2
    assert result.epsilon <= 8


def test_every_client_pays_once_and_the_noise_of_training_leaves_room_for_it(result):
    for client in "012":
        kinds = [row.spend.mechanism for row in rows(result, client)]
        assert kinds == ["discrete-gaussian", "discrete-gaussian", "discrete-laplace"]
    plain = check([w for w in DP if "evaluat" not in w])
    assert rows(result, "0")[0].spend.noise_multiplier > plain.plan.noise_multiplier


def test_two_counts_leave_and_nothing_else_is_new(result):
    counts = {"fedq.counts.right", "fedq.counts.wrong"}
    assert {field for field in result.reply_fields if "count" in field or "metric" in field} == counts


def test_the_log_of_rounds_tells_the_cost_when_it_is_paid(result):
    epsilons = [row.epsilon for row in result.history]
    assert epsilons[2] - epsilons[1] > 2 - 1e-9
    assert result.history[1].accuracy is None
    assert result.history[2].accuracy == result.accuracy


def test_without_its_spend_the_evaluation_makes_the_run_not_private(result, tmp_path):
    import shutil
    import sqlite3

    from fedq.artifacts.run_artifacts import ClientFiles, evidence_of
    from fedq.config.config_file import read_config
    from fedq.experiment import build

    shutil.copytree(result.folder, tmp_path / result.folder.name)
    account = tmp_path / result.folder.name / "clients" / "0" / "ledger.sqlite"
    with sqlite3.connect(account) as connection:
        connection.execute("DELETE FROM spend WHERE mechanism = 'discrete-laplace'")
    connection.close()
    account.with_name("ledger.sqlite.head").unlink()
    Ledger(account).accept("a test removes a piece of evidence")
    files = ClientFiles(tmp_path / result.folder.name / "clients", result.folder.name)
    experiment = build(read_config(result.folder / "config.yaml"))
    _, private, reasons = evidence_of(experiment, files, result.history, result.reply_fields)
    assert private is False
    assert any("client 0, round 2: no spend in the ledger" in reason for reason in reasons)


def test_no_example_is_both_trained_on_and_counted_and_one_more_moves_no_other():
    random = np.random.default_rng(0)
    inputs, targets = random.normal(size=(500, 8)).astype(np.float32), random.integers(0, 3, 500)
    held = held_out_by_content(inputs, targets, 0.2)
    assert abs(len(held) - 100) < 5 * np.sqrt(500 * 0.2 * 0.8)
    without = held_out_by_content(np.delete(inputs, 7, 0), np.delete(targets, 7), 0.2)
    assert [i - (i > 7) for i in held if i != 7] == list(without)
    assert len(held_out_by_content(inputs[:0], targets[:0], 0.2)) == 0


def test_evaluate_off_scores_no_model(tmp_path):
    plain = fedq.run([*WORDS, "evaluate=off"], root=tmp_path, progress=False)
    assert (plain.accuracy, plain.accuracy_source) == (None, "none")
    assert all(row.accuracy is None for row in plain.history)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*WORDS, "evaluate=dp"], "evaluate=dp: .*Use evaluate=server, or privacy=example"),
        ([*DP, "train.metric=mse", "train.loss=mse"], "evaluate=dp: .*the metric is mse"),
        ([*DP, "privacy.evaluation_epsilon=5"], "evaluation_epsilon=5.0: is more than half of the budget 8"),
        ([*DP, "privacy.evaluation_epsilon=0"], "must be in"),
        ([*WORDS, "privacy=example", "privacy.evaluation_epsilon=1"], "Use evaluate=dp"),
        ([*WORDS, "evaluate=maybe"], "must be one of server, dp, off"),
        ([*WORDS, "evaluate=off", "strategy.keep=best"], "without an evaluation the best model is not known"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(words, message):
    with pytest.raises(fedq.ConfigError, match=message):
        check(words)


def test_noisy_counts_do_not_hide_whole_clients():
    words = [*DP, "privacy=both", "privacy.client.target_epsilon=8"]
    with pytest.raises(fedq.ConfigError, match="client-level DP is on"):
        check([w for w in words if w != "privacy=example"])
