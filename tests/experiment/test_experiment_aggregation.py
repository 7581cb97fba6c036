"""From the options of a strategy to its rules against clients that lie."""

import math

import pytest

from fedq.codec import decode
from fedq.config import ConfigError
from fedq.experiment import SERVER, build
from fedq.experiment.aggregation import aggregate_of, bound_of, weights_of_clients
from fedq.flower import wire
from fedq.server.bounding import MULTIPLE, MULTIPLE_OF_NOISE
from fedq.server.robust import Median, TrimmedMean
from tests.quick import compose

WORDS = ["clients=4", "partition=dirichlet", "partition.alpha=0.3", "model.hidden=[16]", "rounds=2"]
PRIVATE = [*WORDS, "privacy=example", "data.nominal_examples=1438", "privacy.noise_multiplier=2", "train.steps=2"]
PRIVATE += ["train.epochs=null", "privacy.accountant=rdp", "data.validation_fraction=0"]


def built(*overrides, **options):
    return build(compose([*WORDS, *overrides]), **options)


def private(*overrides):
    return build(compose([*PRIVATE, *overrides]))


@pytest.mark.parametrize("holdout", [[], ["data.test_fraction=0", "train.holdout=0.25"]], ids=["none", "a quarter"])
def test_a_simulation_weighs_by_the_examples_that_it_dealt_and_clients_train_on(holdout, tmp_path):
    experiment = built(*holdout)
    strategy, weights = experiment.strategy(), weights_of_clients(experiment)
    for name in experiment.identities:
        request = request_of(strategy, experiment, name)
        reply = experiment.client(name, folder=tmp_path / name).train(request)
        assert weights[name] == reply.num_examples


def request_of(strategy, experiment, name):
    packets = strategy.broadcast(experiment.initial, 1, [name]).packets(name)
    return wire.Request(1, -1, packets, experiment.holdout)


@pytest.mark.hostile
def test_no_claim_of_a_client_changes_its_weight():
    """It was the number in the reply."""
    experiment = built()
    weighing = experiment.strategy().aggregation
    assert weighing.weight_of("2", 10**6) == weighing.weight_of("2", 1) == (len(experiment.shards["2"]), False)


def test_what_the_config_states_comes_before_what_was_dealt():
    assert weights_of_clients(built("strategy.weights={0: 5, 1: 6, 2: 7, 3: 8}"))["2"] == 7


@pytest.mark.hostile
def test_the_server_of_a_deployment_asks_for_weights_however_the_run_was_started():
    """`flwr run` does not set runtime=deployment."""
    with pytest.raises(ConfigError, match="nobody can check the number of examples"):
        built(owner=SERVER)
    assert built("strategy.weighting=equal", owner=SERVER).strategy().aggregation.weight_of("0", 10**6) == (1.0, False)


def test_without_privacy_the_bound_is_a_multiple_of_the_median_and_follows_the_learning_rate():
    bound = bound_of(built("train.lr=0.5", "train.schedule=linear"))()
    assert bound.limit() is None
    assert bound.limit_among([1.0, 1.0, 9.0]) == MULTIPLE
    assert bound.reach(3.0, weight=7.0, round=1) == 3.0 / 0.5
    assert bound.reach(3.0, weight=7.0, round=2) == 3.0 / 0.25


def test_under_dp_sgd_the_first_round_is_bounded_by_public_numbers():
    experiment = private()
    bound = bound_of(experiment)()
    assert bound.limit() == 1.0
    noise = experiment.plan.noise_std / experiment.plan.divisor
    shortest = 0.1 * noise * math.sqrt(2 * experiment.trainer.trained_scalars)  # lr 0.1, the noise of two steps
    assert 0.5 < bound.reach(shortest, 1.0, 1) < 1.0
    bound.note([0.6, 0.6, 0.6])
    assert bound.limit() == pytest.approx(0.6 * MULTIPLE_OF_NOISE)


@pytest.mark.parametrize(
    "other",
    [
        ["train=adam"],
        ["train.optimizer_options.weight_decay=0.1"],
        ["codec=int4"],
        ["codec=int8", "codec.error_feedback=true"],
    ],
    ids=str,
)
def test_where_public_numbers_say_nothing_the_median_alone_bounds(other):
    assert bound_of(private(*other))().limit() is None


def test_an_honest_private_update_is_not_shortened(tmp_path):
    experiment = private("train.optimizer_options.momentum=0.5")
    strategy = experiment.strategy()
    bound = bound_of(experiment)()
    for name in experiment.identities:
        client = experiment.client(name, folder=tmp_path / name, run="run")
        reply = client.train(request_of(strategy, experiment, name))
        update = decode(reply.packets["update"], experiment.layout)
        assert bound.reach(float((update.astype(float) ** 2).sum() ** 0.5), 1.0, 1) < 1.0


def test_a_number_bounds_the_norm_and_off_bounds_nothing():
    assert bound_of(built("strategy.max_update_norm=2.5"))().limit() == 2.5
    assert bound_of(built("strategy.max_update_norm=off")) is None


def test_whole_clients_are_clipped_by_their_own_rule():
    assert bound_of(build(compose(["clients=200", "privacy=client", "model.hidden=[16]"]))) is None


def test_the_aggregate_gets_its_options():
    assert aggregate_of(built()) is None
    assert aggregate_of(built("strategy.aggregate=median")) == Median()
    assert aggregate_of(built("strategy.aggregate=trimmed_mean", "strategy.trim=0.3")) == TrimmedMean(0.3)
