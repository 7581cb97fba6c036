"""When weights are pruned, and what is refused."""

import pytest

from fedq.config import problems
from fedq.config.pruning import pruning_rounds
from fedq.config.rules import config_hash
from tests.quick import compose


def found(*overrides):
    return problems(compose(["quant=int8", "quant.sparsity=0.9", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "rounds"),
    [
        (["rounds=100"], (10, 60)),
        (["rounds=30"], (3, 18)),
        (["rounds=100", "quant.sparsity_begin=0.29", "quant.sparsity_end=0.57"], (29, 57)),
        (["rounds=3"], (0, 1)),
        (["rounds=2"], (0, 1)),
    ],
)
def test_shares_of_the_rounds_become_rounds(overrides, rounds):
    assert pruning_rounds(compose(["quant=int8", *overrides])) == rounds


@pytest.mark.parametrize("overrides", [[], ["rounds=2"], ["quant.sparsity_begin=0", "quant.sparsity_end=0.95"]])
def test_one_round_after_the_last_pruned_weight_is_enough(overrides):
    assert found(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "key", "fix"),
    [
        (["quant.sparsity_begin=0.6"], "quant.sparsity_begin", "Use quant.sparsity_begin=0.1"),
        (["quant.sparsity_begin=0.7"], "quant.sparsity_begin", "Use quant.sparsity_begin=0.1"),
        (["quant.sparsity_end=1"], "quant.sparsity_end", "quant.sparsity_end=0.6"),
        (["quant.sparsity_begin=0.96", "quant.sparsity_end=0.99"], "quant.sparsity_end", "quant.sparsity_begin=0.1"),
        (["rounds=1"], "rounds", "Use rounds=20"),
        (["downlink.kind=delta", "downlink.name=sign"], "downlink.kind", "Use downlink.kind=weights"),
        (["quant.sparsity=1"], "quant.sparsity", "Try quant.sparsity"),
        (["quant.sparsity=0"], "quant.sparsity", "Try quant.sparsity"),
    ],
)
def test_what_cannot_be_pruned_so_is_refused_with_a_mend(overrides, key, fix):
    (problem,) = found(*overrides)
    assert problem.key == key
    assert fix in problem.fix


def test_a_schedule_without_a_sparsity_does_nothing_and_is_refused():
    (problem,) = problems(compose(["quant=int8", "quant.sparsity_end=0.5"]))
    assert (problem.key, problem.fix) == ("quant.sparsity_end", "Add quant.sparsity=0.9")


def test_a_sparsity_without_quantization_is_refused():
    assert [p.key for p in problems(compose(["quant=off", "quant.sparsity=0.9"]))] == ["quant.sparsity"]


def test_a_sparse_experiment_is_another_than_the_dense_one():
    dense, sparse = compose(["quant=int8"]), compose(["quant=int8", "quant.sparsity=0.9"])
    assert config_hash(dense) != config_hash(sparse)
