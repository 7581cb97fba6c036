"""Whole runs whose weights are pruned."""

import json

import numpy as np
import pytest

import fedq
from fedq.runtime.forecast import forecast

# 64 x 64 and 64 x 10 weights: 4,096 and 640.
SPARSE = [
    "clients=4",
    "rounds=5",
    "model.hidden=[64]",
    "quant=int8",
    "quant.weight_range=63",
    "codec=int8",
    "quant.sparsity=0.9",
]
ZEROS = 4262  # 0.9 * 4736, to the nearest
DP = [
    "privacy=example",
    "privacy.noise=seeded",
    "privacy.accountant=rdp",
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=4",
    "train.epochs=null",
    "train.steps=1",
]


def run(folder, *overrides):
    return fedq.run([*SPARSE, *overrides], root=folder, progress=False)


def zeros(result):
    return {name: int((array == 0).sum()) for name, array in result.arrays.items() if array.ndim == 2}


@pytest.mark.slow
@pytest.mark.parametrize("privacy", [[], DP], ids=["plain", "private"])
def test_the_delivered_model_has_the_sparsity_that_was_asked_for(tmp_path, privacy):
    """Pruning from round 0 to 3 of 5: 1 - (2/3)^3 and 1 - (1/3)^3 of it after rounds 1 and 2."""
    result = run(tmp_path, *privacy)
    hidden, output = zeros(result).values()
    assert hidden + output == ZEROS
    assert output / 640 < hidden / 4096  # the small last layer loses less
    assert result.sparsity == ZEROS / 4736
    told = [json.loads(line)["sparsity"] for line in (result.folder / "rounds.jsonl").read_text().splitlines()]
    assert told == pytest.approx([0, 0.9 * 19 / 27, 0.9 * 26 / 27, 0.9, 0.9, 0.9], abs=1e-3)
    assert result.clients_lost == 0


@pytest.mark.slow
def test_packets_shrink_as_weights_go(tmp_path):
    rows = run(tmp_path).history
    assert rows[5].bytes_up < 0.33 * rows[1].bytes_up  # messages of this small model are mostly not packets
    assert rows[5].bytes_down < rows[4].bytes_down + 100 < 0.5 * rows[1].bytes_down
    assert rows[5].float32_bytes_down == rows[1].float32_bytes_down


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["codec.error_feedback=true", "codec.rounding=stochastic"]], ids=["plain", "error_feedback"]
)
def test_one_and_two_workers_give_the_same_bits(tmp_path, more):
    one, two = (run(tmp_path / str(n), f"runtime.workers={n}", *more) for n in (1, 2))
    assert one.clients_lost == two.clients_lost == 0
    assert all(np.array_equal(one.arrays[name], two.arrays[name]) for name in one.arrays)
    assert [(r.bytes_up, r.bytes_down, r.sparsity) for r in one.history] == [
        (r.bytes_up, r.bytes_down, r.sparsity) for r in two.history
    ]


@pytest.mark.slow
def test_a_server_with_momentum_delivers_the_sparsity_too(tmp_path):
    assert sum(zeros(run(tmp_path, "strategy=fedavgm")).values()) == ZEROS


def test_the_best_model_is_the_best_of_the_sparse_ones(tmp_path):
    result = run(tmp_path, "strategy.keep=best", "data.validation_fraction=0.1")
    assert sum(zeros(result).values()) == ZEROS


@pytest.mark.slow
def test_a_dense_run_tells_no_sparsity(tmp_path):
    result = run(tmp_path, "quant.sparsity=null", "rounds=1")
    assert result.sparsity is None
    assert {row.sparsity for row in result.history} == {None}


@pytest.mark.slow
def test_the_forecast_counts_the_packets_of_each_round(tmp_path):
    from fedq.config import compose
    from fedq.experiment import build

    result, told = run(tmp_path), forecast(build(compose(SPARSE)))
    # By the mask of another model: as many weights go, but not as many of each layer.
    assert told.bytes_up == pytest.approx(result.bytes_up, rel=0.02)
    assert told.bytes_down == pytest.approx(result.bytes_down, rel=0.02)


def test_a_model_too_small_to_be_pruned_is_refused(tmp_path):
    with pytest.raises(fedq.ConfigError, match="there is nothing to prune"):
        run(tmp_path, "model.hidden=[3]")
