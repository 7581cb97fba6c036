"""The algorithm that a config names: with its options, or refused with key, rule and fix."""

import pytest

from fedq.algorithms import FedAvg, FedProx, Scaffold
from fedq.experiment.algorithm import algorithm_of
from tests.quick import compose

SGD = ["train.optimizer=SGD", "train.optimizer_options={}"]


def found(*overrides):
    """The algorithm, and what is wrong as (key, rule, fix)."""
    problems = []
    algorithm = algorithm_of(compose(overrides), problems)
    return algorithm, [(problem.key, problem.rule, problem.fix) for problem in problems]


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [([], FedAvg), (["algorithm=fedprox", "algorithm.mu=0.5"], FedProx), (["algorithm=scaffold", *SGD], Scaffold)],
)
def test_the_algorithm_is_the_one_that_is_named(overrides, kind):
    algorithm, problems = found(*overrides)
    assert (type(algorithm), problems) == (kind, [])


def test_an_option_reaches_the_algorithm():
    assert found("algorithm=fedprox", "algorithm.mu=0.5")[0] == FedProx(mu=0.5)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    algorithm, [(key, rule, fix)] = found("algorithm.name=fedprx")
    assert (algorithm, key, fix) == (None, "algorithm.name", "Use algorithm=fedprox")
    assert "fedavg, fedprox, scaffold" in rule


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["algorithm.mu=1"], "algorithm=fedavg has no such option; it has none"),
        (["algorithm=fedprox", "algorithm.nu=1"], "algorithm=fedprox has no such option; it has mu"),
    ],
)
def test_an_option_that_the_algorithm_lacks_is_refused(overrides, rule):
    algorithm, problems = found(*overrides)
    assert algorithm is None
    assert problems == [(overrides[-1].partition("=")[0], rule, "Leave it out")]


def test_a_value_that_the_algorithm_refuses_is_refused_by_its_key():
    algorithm, [(key, rule, fix)] = found("algorithm=fedprox", "algorithm.mu=-1")
    assert (algorithm, key) == (None, "algorithm.mu")
    assert rule.startswith("must be a finite number above 0")
    assert fix.startswith("Use algorithm=fedavg")


@pytest.mark.parametrize("override", ["train.optimizer=Adam", "train.optimizer_options.momentum=0.9"])
def test_scaffold_needs_plain_sgd(override):
    (problem,) = found("algorithm=scaffold", *SGD, override)[1]
    assert problem[0] == "train.optimizer"
    assert "needs plain SGD" in problem[1]


@pytest.mark.parametrize("unit", ["client", "both"])
def test_client_level_noise_does_not_cover_what_scaffold_sends_beside_the_update(unit):
    (problem,) = found("algorithm=scaffold", *SGD, f"privacy={unit}")[1]
    assert problem[0] == "privacy.unit"
    assert "the server's noise covers the update alone" in problem[1]


def test_example_level_privacy_covers_all_that_scaffold_sends():
    assert found("algorithm=scaffold", *SGD, "privacy=example")[1] == []
