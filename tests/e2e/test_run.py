"""Whole runs from Python, as a user starts them."""

import json
import sqlite3

import numpy as np
import pytest
import yaml
from safetensors import safe_open

import fedq
from fedq.results import read_result

SMALL = ["model._target_=mine.Net", "data._target_=mine.digits", "clients=4", "rounds=3", "train.lr=0.5"]
PRIVATE = [
    "data._target_=mine.public",
    "privacy=example",
    "privacy.nominal_examples=60",
    "train.epochs=null",
    "train.steps=2",
    "train.batch_size=30",
]


def run(*overrides, **objects):
    return fedq.run(overrides, progress=False, **objects)


def test_the_folder_holds_what_is_promised(workplace):
    result = run(*SMALL, "quant=int8", "codec=int8")
    names = {p.name for p in result.folder.iterdir()}
    assert names >= {
        "config.yaml",
        "rounds.jsonl",
        "result.json",
        "curves.png",
        "model.safetensors",
        "model.onnx",
        "clients",
    }
    assert result.folder.parent.parent.name == "outputs"
    assert {p.name for p in (result.folder / "clients").iterdir()} == {"0", "1", "2", "3"}
    with safe_open(result.folder / "model.safetensors", "np") as file:
        assert file.metadata() is None
        assert set(file.keys()) == {"1.weight", "1.bias", "3.weight", "3.bias"}
    assert yaml.safe_load((result.folder / "config.yaml").read_text())["codec"]["name"] == "int8"


def test_the_result_is_measured_and_adds_up(workplace):
    result = run(*SMALL, "quant=int8", "codec=int8")
    told = json.loads((result.folder / "result.json").read_text())
    rows = [json.loads(line) for line in (result.folder / "rounds.jsonl").read_text().splitlines()]
    for way in ("bytes_up", "bytes_down", "float32_bytes_up", "float32_bytes_down"):
        assert sum(row[way] for row in rows) == told[way] > 0
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert told["rounds"] == 3
    assert told["int8_ops"]["QGemm"] == 2
    assert not {"Conv", "Gemm", "MatMul"} & set(told["float_ops"])
    assert told["epsilon"] is None
    assert told["private"] is False
    assert told["accuracy_source"] == "server_test"
    assert told["model_bytes"] == (result.folder / "model.safetensors").stat().st_size
    assert told["int8_model_bytes"] == (result.folder / "model.onnx").stat().st_size


@pytest.mark.slow
def test_the_int8_model_loads_as_a_callable_with_the_measured_accuracy(workplace):
    import mine

    result = run(*SMALL, "quant=int8")
    x, y = mine.digits()[1]
    outputs = fedq.load(result.folder)(x)
    assert outputs.shape == (len(x), 10)
    assert float(np.mean(outputs.argmax(1) == y)) == pytest.approx(result.int8_accuracy, abs=1e-12)


def test_without_quantization_there_is_no_int8_model_to_load(workplace):
    result = run(*SMALL)
    assert result.int8_accuracy is None
    with pytest.raises(FileNotFoundError, match="quant=int8"):
        fedq.load(result.folder)


def test_float32_bytes_are_those_of_the_same_run_under_float32(workplace):
    small, plain = run(*SMALL, "codec=int8"), run(*SMALL)
    assert (small.float32_bytes_up, small.float32_bytes_down) == (plain.bytes_up, plain.bytes_down)
    assert small.bytes_up < 0.6 * plain.bytes_up  # 650 parameters: a third of a message is not weights


ONE_BIT = ["codec=sign", "codec.rotate=true", "codec.block=256", "codec.error_feedback=true"]
CHANGES = ["downlink.name=sign", "downlink.rotate=true", "downlink.block=256", "downlink.kind=delta"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        [],
        ["fraction=0.5", "codec=int8", "codec.rounding=stochastic", "codec.error_feedback=true"],
        ["fraction=0.75", *ONE_BIT, *CHANGES],
    ],
)
def test_the_same_bits_come_from_one_and_two_workers_with_a_client_that_fails(workplace, way):
    overrides = [
        "model._target_=mine.Fragile",
        "data._target_=mine.marked",
        "clients=4",
        "rounds=4",
        "quant=int8",
        *way,
    ]
    one, two = run(*overrides), run(*overrides, "runtime.workers=2")
    assert one.clients_lost == two.clients_lost == sum(row.clients + row.lost for row in one.history) // 4
    assert {reason for row in one.history for reason in row.reasons} == {"client_error"}
    assert one.arrays.keys() == two.arrays.keys()
    assert all(np.array_equal(one.arrays[k], two.arrays[k]) for k in one.arrays)
    assert [(r.bytes_up, r.bytes_down, r.loss) for r in one.history] == [
        (r.bytes_up, r.bytes_down, r.loss) for r in two.history
    ]


def test_one_bit_both_ways_gives_the_same_bits_from_one_and_two_workers_though_clients_miss_rounds(tmp_path):
    words = ["clients=4", "rounds=5", "fraction=0.75", "model.hidden=[16]", *ONE_BIT, *CHANGES]
    one, two = (fedq.run([*words, f"runtime.workers={n}"], root=tmp_path / str(n), progress=False) for n in (1, 2))
    assert [row.clients for row in one.history] == [0, *[3] * 5]
    assert one.clients_lost == two.clients_lost == 0
    assert one.arrays.keys() == two.arrays.keys()
    assert all(np.array_equal(one.arrays[k], two.arrays[k]) for k in one.arrays)
    assert [(r.bytes_up, r.bytes_down, r.loss) for r in one.history] == [
        (r.bytes_up, r.bytes_down, r.loss) for r in two.history
    ]


def test_changes_take_fewer_bytes_down_than_weights_where_all_take_part_and_the_model_is_as_good(tmp_path):
    words = ["clients=3", "rounds=20", "model.hidden=[32]"]
    plain, changes = (
        fedq.run([*words, *way], root=tmp_path / str(len(way)), progress=False) for way in ([], [*ONE_BIT, *CHANGES])
    )
    assert changes.bytes_down < plain.bytes_down / 5
    assert changes.bytes_up < plain.bytes_up / 5
    assert changes.accuracy > plain.accuracy - 0.03


def test_what_went_wrong_stays_in_the_client_s_own_log(workplace):
    result = run("model._target_=mine.Fragile", "data._target_=mine.marked", "clients=4", "rounds=1")
    assert "scan-4711" in (result.folder / "clients" / "1" / "log.txt").read_text()
    assert "scan-4711" not in (result.folder / "rounds.jsonl").read_text()


def test_another_seed_gives_another_model(workplace):
    one, two = run(*SMALL), run(*SMALL, "seed=1")
    assert not np.array_equal(one.arrays["1.weight"], two.arrays["1.weight"])


def test_objects_of_the_caller_stand_in_for_names(workplace):
    import mine

    named = run(*SMALL)
    given = run("clients=4", "rounds=3", "train.lr=0.5", model=mine.Net, data=mine.digits)
    assert all(np.array_equal(named.arrays[k], given.arrays[k]) for k in named.arrays)


def test_objects_cannot_cross_to_workers(workplace):
    import mine

    with pytest.raises(fedq.ConfigError, match=r"runtime\.workers=1"):
        run("clients=4", "runtime.workers=2", model=mine.Net, data=mine.digits)


@pytest.mark.slow
def test_regression_learns_and_is_scored_by_its_metric(workplace):
    overrides = [
        "model=linear",
        "data._target_=mine.line",
        "clients=4",
        "rounds=30",
        "quant=int8",
        "quant.input_range=4",
    ]
    result = run(*overrides, "train.loss=mse", "train.metric=r2", "train.lr=0.05")
    assert result.accuracy is None
    assert result.metric_value > 0.95
    assert result.int8_metric_value > 0.95


def test_multilabel_learns(workplace):
    overrides = ["model=linear", "data._target_=mine.tags", "clients=4", "rounds=20", "train.lr=1"]
    result = run(*overrides, "train.loss=binary_cross_entropy", "train.metric=multilabel_accuracy")
    assert result.accuracy > 0.9


def test_a_loss_that_does_not_fit_the_targets_is_refused(workplace):
    with pytest.raises(fedq.ConfigError, match=r"train\.loss=cross_entropy.*train\.loss=mse"):
        run("model=linear", "data._target_=mine.line", "clients=4")


def test_a_table_with_a_client_column(workplace):
    rng = np.random.default_rng(0)
    rows = ["age,dose,site,ill"]
    for i in range(300):
        age, dose = rng.normal(size=2)
        rows.append(f"{age:.4f},{dose:.4f},{'abc'[i % 3]},{int(age + dose > 0)}")
    (workplace / "table.csv").write_text("\n".join(rows) + "\n")
    data = ["data=csv", "data.path=table.csv", "data.target=ill", "data.client=site"]
    result = run(*data, "partition=by_column", "clients=3", "model=linear", "rounds=10", "train.lr=1")
    assert result.accuracy > 0.9


def test_clients_judge_where_the_server_has_no_test_set(workplace):
    result = run("model._target_=mine.Net", "data._target_=mine.no_test", "clients=4", "rounds=8", "train.lr=0.5")
    assert result.accuracy_source == "clients"
    assert result.accuracy > 0.4
    assert sum(row.bytes_up for row in result.history) == result.bytes_up


def test_under_dp_nobody_judges_where_the_server_has_no_test_set(workplace):
    result = run("model._target_=mine.Net", "data._target_=mine.no_test", "clients=4", "rounds=2", *PRIVATE[1:])
    assert (result.accuracy_source, result.accuracy) == ("none", None)


def test_the_best_model_is_chosen_on_validation(workplace):
    result = run("rounds=6", "clients=4", "train.lr=3", "strategy.keep=best", "train.schedule=constant")
    best = max(result.history[1:], key=lambda row: row.validation_accuracy)
    assert result.accuracy == best.accuracy


def test_without_a_validation_set_the_best_cannot_be_chosen(workplace):
    with pytest.raises(fedq.ConfigError, match="validation"):
        run(*SMALL, "strategy.keep=best")


@pytest.mark.parametrize("strategy", [["strategy=fedavgm"], ["strategy=fedadam", "strategy.server_lr=0.03"]])
def test_a_server_optimizer_trains(workplace, strategy):
    history = run(*SMALL, *strategy, "rounds=12", "train.lr=0.2").history
    assert history[-1].loss < 0.9 * history[0].loss


def test_private_is_what_the_evidence_says(workplace):
    result = run(*SMALL, *PRIVATE, "privacy.target_epsilon=8")
    assert result.private, result.privacy_reasons
    assert 0 < result.epsilon <= 8
    assert [row.epsilon for row in result.history] == sorted(row.epsilon for row in result.history)
    assert result.history[-1].epsilon == pytest.approx(result.epsilon)
    with sqlite3.connect(result.folder / "clients" / "2" / "ledger.sqlite") as ledger:
        assert ledger.execute("select count(*), sum(steps) from spend").fetchone() == (3, 6)


def test_a_loader_that_does_not_say_how_it_scales_is_not_private(workplace):
    result = run(*SMALL, *PRIVATE[1:])
    assert result.private is False
    assert any("does not say" in reason for reason in result.privacy_reasons)


def test_a_model_that_mixes_examples_is_refused_under_dp(workplace):
    with pytest.raises(fedq.ConfigError, match="mix"):
        run(*SMALL[1:], *PRIVATE, "model._target_=mine.Mixing")


def test_a_model_that_remembers_its_data_gives_no_update_and_no_privacy(workplace):
    result = run(*SMALL[1:], *PRIVATE, "model._target_=mine.Frozen", "rounds=1")
    assert result.private is False
    assert result.arrays["largest"].tolist() == [0.0]


def test_a_failure_that_depends_on_the_data_is_not_private(workplace):
    result = run(*SMALL[1:], *PRIVATE, "model._target_=mine.Peek")
    assert "declined" in {reason for row in result.history for reason in row.reasons}
    assert result.private is False
    assert any("refusal" in reason for reason in result.privacy_reasons)


def test_masks_of_dropout_are_drawn_anew_and_in_secret_under_dp(workplace):
    quiet = [*SMALL[1:], *PRIVATE, "model._target_=mine.Dropping", "rounds=1", "privacy.target_epsilon=null"]
    one, two = (run(*quiet, "privacy.noise_multiplier=0.01") for _ in range(2))
    # Noise of 0.01 * clip / divisor moves a weight by 0.0003 a step; another mask moves it by far more.
    assert np.abs(one.arrays["2.weight"] - two.arrays["2.weight"]).max() > 0.002


def test_a_guarantee_that_says_nothing_is_not_called_private(workplace):
    result = run(*SMALL, *PRIVATE, "rounds=1", "privacy.target_epsilon=null", "privacy.noise_multiplier=0.05")
    assert result.epsilon > 20
    assert result.private is False


def test_a_ledger_takes_no_spends_of_another_deal(workplace):
    shared = [*SMALL, *PRIVATE, "privacy.ledger=ledgers", "rounds=1"]
    assert run(*shared).private
    for dealt_anew in ("clients=5", "seed=1", "partition=dirichlet"):
        with pytest.raises(fedq.ConfigError, match="would spend the same examples twice"):
            run(*shared, dealt_anew)


def test_two_private_runs_differ(workplace):
    one, two = run(*SMALL, *PRIVATE), run(*SMALL, *PRIVATE)
    assert not np.array_equal(one.arrays["1.weight"], two.arrays["1.weight"])


def test_seeded_noise_repeats_and_is_not_private(workplace):
    one, two = (run(*SMALL, *PRIVATE, "privacy.noise=seeded") for _ in range(2))
    assert np.array_equal(one.arrays["1.weight"], two.arrays["1.weight"])
    assert one.private is False
    assert any("reproduce" in reason for reason in one.privacy_reasons)


@pytest.mark.parametrize("lost", ["ledger.sqlite", "evidence.jsonl"])
def test_without_a_client_s_ledger_or_evidence_the_run_is_not_private(workplace, lost):
    from fedq.artifacts.run_artifacts import ClientFiles, evidence_of
    from fedq.runtime import check

    overrides = [*SMALL, *PRIVATE]
    result, experiment = run(*overrides), check(overrides)
    files = ClientFiles(result.folder / "clients", result.folder.name)
    fields = ["fedq.reply.round", "fedq.packets.update"]
    assert evidence_of(experiment, files, result.history, fields)[1:] == (True, [])
    (result.folder / "clients" / "3" / lost).unlink()
    assert not evidence_of(experiment, files, result.history, fields)[1]


def test_a_budget_that_is_spent_ends_the_run_and_says_so(workplace):
    result = run(*SMALL, *PRIVATE, "rounds=30", "privacy.noise_multiplier=1", "privacy.target_epsilon=8")
    assert result.status == "ended"
    assert "budget" in result.status_reason
    assert 0 < result.rounds < 30
    assert result.epsilon <= 8
    assert result.history[-1].reasons == {"budget": 4}


def test_a_ledger_of_its_own_composes_over_runs(workplace):
    overrides = [*SMALL, *PRIVATE, "privacy.ledger=ledgers", "privacy.noise_multiplier=2", "privacy.target_epsilon=50"]
    first, second = run(*overrides), run(*overrides)
    assert second.epsilon > first.epsilon > 0
    assert second.history[-1].epsilon == pytest.approx(second.epsilon)


def test_a_table_scaled_by_its_own_statistics_is_refused_under_dp(workplace):
    (workplace / "t.csv").write_text("a,b,y\n" + "\n".join(f"{i},{i % 7},{i % 2}" for i in range(100)) + "\n")
    with pytest.raises(fedq.ConfigError, match=r"data\.standardize"):
        run("data=csv", "data.path=t.csv", "data.target=y", "clients=2", *PRIVATE[1:])


def test_a_result_read_back_is_the_result(workplace):
    result = run(*SMALL)
    again = read_result(result.folder)
    assert again.to_dict() == json.loads(json.dumps(result.to_dict()))
    assert len(again.history) == 4


def test_a_run_leaves_the_caller_s_threads_and_generators_alone(workplace):
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    try:
        run(*SMALL)
        assert torch.equal(torch.rand(3), expected)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_model_that_diverges_ends_the_run_and_says_so(workplace):
    result = run(*SMALL, "codec=float32", "train.lr=50", "strategy.server_lr=1e38", "strategy.max_update_norm=off")
    assert result.status == "failed"
    assert "the step is not finite" in result.status_reason
    assert all(np.isfinite(a).all() for a in result.arrays.values())


def test_an_optimizer_that_needs_more_than_a_gradient_is_refused(workplace):
    with pytest.raises(fedq.ConfigError, match=r"strategy\.server_optimizer=LBFGS"):
        run(*SMALL, "strategy.server_optimizer=LBFGS")
