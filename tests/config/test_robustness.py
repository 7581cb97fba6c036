"""Weights, the longest update and robust aggregates: what does not go together is refused before anything starts."""

import pytest

from fedq.config import problems, rules
from tests.quick import compose

DEPLOYED = ["runtime=deployment", "clients=2", "names=[a,b]"]


def keys(*overrides):
    return [problem.key for problem in problems(compose(list(overrides)))]


@pytest.mark.hostile
def test_a_deployment_does_not_believe_what_clients_say_of_their_examples():
    """A client's weight was the number in its own reply, up to a million."""
    (problem,) = problems(compose(DEPLOYED))
    assert problem.key == "strategy.weighting"
    assert "strategy.weighting=equal" in problem.fix
    assert "strategy.weights={NAME: N, ...}" in problem.fix


@pytest.mark.parametrize(
    "way",
    [
        ["strategy.weighting=equal"],
        ["strategy.weights={a: 100, b: 250}"],
        ["strategy.weights.a=100", "strategy.weights.b=2.5"],
        ["experiment=demo"],
        ["experiment=demo", "privacy=off"],
        ["strategy.aggregate=median", "clients=3", "names=[a,b,c]"],
    ],
    ids=str,
)
def test_what_needs_no_such_word_is_let_through(way):
    assert keys(*DEPLOYED, *way) == []


def test_weights_may_be_stated_in_a_simulation_too():
    config = compose(["clients=2", "strategy.weights={0: 100, 1: 250}"])
    assert (problems(config), config.strategy.weights) == ([], {"0": 100, "1": 250})


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["clients=2", "strategy.weights={0: 100}"], "strategy.weights"),
        (["clients=2", "strategy.weights={0: 100, 1: 5, 2: 5}"], "strategy.weights.2"),
        (["clients=1", "strategy.weights={0: 0}"], "strategy.weights.0"),
        (["clients=1", "strategy.weights={0: 2000000}"], "strategy.weights.0"),
        (["clients=1", "strategy.weights={0: many}"], "strategy.weights.0"),
        (["clients=1", "strategy.weights={0: true}"], "strategy.weights.0"),
        (["strategy.max_update_norm=0"], "strategy.max_update_norm"),
        (["strategy.max_update_norm=-1"], "strategy.max_update_norm"),
        (["strategy.max_update_norm=inf"], "strategy.max_update_norm"),
        (["strategy.max_update_norm=nan"], "strategy.max_update_norm"),
        (["strategy.max_update_norm=none"], "strategy.max_update_norm"),
        (["strategy.max_update_norm=false"], "strategy.max_update_norm"),
        (["strategy.max_update_norm=null"], "strategy.max_update_norm"),
        (["strategy.aggregate=mode"], "strategy.aggregate"),
        (["strategy.aggregate=median", "clients=2"], "strategy.aggregate"),
        (["strategy.aggregate=median", "fraction=0.2"], "strategy.aggregate"),
        (["strategy.aggregate=median", "codec=topk"], "strategy.aggregate"),
        (["strategy.aggregate=trimmed_mean", "codec=randk"], "strategy.aggregate"),
        (["strategy.aggregate=trimmed_mean", "strategy.trim=0.5"], "strategy.trim"),
        (["strategy.aggregate=median", "privacy=client", "clients=200"], "strategy.aggregate"),
    ],
)
def test_what_is_wrong_is_refused_by_its_key(overrides, key):
    assert keys(*overrides) == [key]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["strategy.trim=0.1"], "strategy.trim"),
        (["strategy.weighting=equal", "strategy.max_weight=10"], "strategy.max_weight"),
        (["strategy.weighting=equal", "clients=1", "strategy.weights.0=10"], "strategy.weights"),
        (["strategy.aggregate=median", "strategy.weighting=examples"], "strategy.weighting"),
        (["experiment=demo", "strategy.max_weight=10"], "strategy.max_weight"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(overrides, key):
    assert key in keys(*overrides)


def test_a_norm_beside_the_clip_of_whole_clients_is_refused():
    assert set(keys("privacy=client", "clients=200", "strategy.max_update_norm=3")) == {"strategy.max_update_norm"}


@pytest.mark.parametrize("word", ["auto", "off", "2.5", "3"])
def test_the_longest_update_may_be_a_number_or_a_word(word):
    assert keys(f"strategy.max_update_norm={word}") == []


@pytest.mark.parametrize("word", ["max_update_norm=3", "weights={0: 1}", "aggregate=median", "max_weight=7"])
def test_each_of_them_makes_another_experiment(word):
    assert rules.config_hash(compose([f"strategy.{word}"])) != rules.config_hash(compose([]))
