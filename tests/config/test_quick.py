"""The tests' own `compose` gives what fedq's gives: the same config, or the same error."""

import pytest

from fedq.config import ConfigError
from fedq.config import compose as by_hydra
from tests.quick import compose

pytestmark = pytest.mark.integration

PRIVATE = ["privacy=example", "privacy.nominal_examples=40", "privacy.sample_rate=0.5", "train.epochs=null"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["clients=6", "partition=dirichlet", "model.hidden=[16]", "train.epochs=0.5", "quant=off"],
        ["experiment=demo", "privacy=off", "rounds=3", "codec=float32"],
        [*PRIVATE, "train.steps=2", "privacy.budgets={0: 3, 1: 4.5}"],
        ["clients=2", "names=[clinic-b,clinic-a]", "strategy.weights={clinic-a: 100, clinic-b: 250}"],
        ["strategy.weights.a=100", "strategy.max_update_norm=auto", 'name="a b"', "privacy.ledger=/srv/ledgers"],
        ["runtime=ray", "runtime.client_resources.num_gpus=0.5", "train.optimizer_options.momentum=0.9"],
        ["data=csv", "data.path=x.csv", "data.target=y", "data.classes=[no,yes]"],
        ["rounds=3", "rounds=4", "quant.weight_range=63", "quant=int8", "codec.name=int8", "downlink.name=sign"],
        ["model._target_=my.Net", "model.width=3"],
    ],
    ids=" ".join,
)
def test_a_config_is_the_one_that_hydra_composes(words):
    assert compose(words) == by_hydra(words)


@pytest.mark.parametrize(
    "words", [["rounds=abc"], ["nosuch=1"], ["privacy=nosuch"], ["privacy=[off,example]"], ["+rounds=1"], ["data=csv"]]
)
def test_an_error_is_the_one_that_fedq_reports(words):
    with pytest.raises(ConfigError) as expected:
        by_hydra(words)
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert caught.value.problems == expected.value.problems


def test_a_config_that_a_test_changes_changes_no_other():
    first = compose(["train.optimizer_options.momentum=0.9"])
    first.train.optimizer_options["momentum"] = first.train.lr = 7
    first.data["path"] = "elsewhere"
    assert compose(["train.optimizer_options.momentum=0.9"]) == by_hydra(["train.optimizer_options.momentum=0.9"])
