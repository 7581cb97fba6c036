"""What is wrong with an algorithm's name, options or company is told with key and fix, before anything is built."""

import pytest

from fedq.algorithms import FedAvg, FedProx
from fedq.config import ConfigError, compose
from fedq.experiment import build


def problem_of(*overrides):
    with pytest.raises(ConfigError) as refused:
        build(compose(["model=linear", *overrides]))
    (found,) = refused.value.problems
    return found


def test_the_default_is_fedavg_and_options_reach_the_class():
    assert build(compose(["model=linear"])).algorithm == FedAvg()
    assert build(compose(["model=linear", "algorithm=fedprox", "algorithm.mu=0.5"])).algorithm == FedProx(mu=0.5)


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["algorithm.name=scafold"], "algorithm.name", "Use algorithm=scaffold"),
        (["algorithm=fedprox", "algorithm.muu=1"], "algorithm.muu", "Did you mean algorithm.mu?"),
        (["algorithm=scaffold", "algorithm.mu=1"], "algorithm.mu", "It takes: nothing"),
        (["algorithm=fedprox", "algorithm.mu=-1"], "algorithm.mu", "must be a finite number above 0"),
        (["algorithm=fedprox", "algorithm.mu=much"], "algorithm", "not supported between"),
        (["algorithm=scaffold", "train=adam"], "train.optimizer", "needs plain SGD"),
        (["algorithm=scaffold", "train.optimizer_options.momentum=0.9"], "train.optimizer", "without momentum"),
        (
            ["algorithm=scaffold", "privacy=client", "privacy.client.target_epsilon=8", "clients=200"],
            "privacy.unit",
            "covers the update alone",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_key(overrides, key, says):
    found = problem_of(*overrides)
    assert found.key == key
    assert says in f"{found.rule}. {found.fix}"


def test_weight_decay_is_part_of_the_gradient_and_goes_with_scaffold():
    build(compose(["model=linear", "algorithm=scaffold", "train.optimizer_options.weight_decay=0.01"]))
