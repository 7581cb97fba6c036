"""The moving average of a run's models: its weights, what is delivered of it, and what it leaves alone."""

import numpy as np
import pytest
from hand_made import LAYOUT, run

from fedq.codec import MaskedLayout
from fedq.server.average import MovingAverage
from fedq.server.loop import Scores

WHOLE = MaskedLayout(LAYOUT)


def models(count):
    return list(np.random.default_rng(0).normal(size=(count, LAYOUT.size)).astype(np.float32))


def averages(decay, given):
    average = MovingAverage(decay)
    return [average.after(model, WHOLE) for model in given]


def scored(**options):
    """Model by round as it is scored, and the run."""
    seen = {}
    ran = run(score=lambda round, model: seen.setdefault(round, model.copy()) is None or Scores(), **options)
    return seen, ran


def test_until_its_memory_is_full_it_is_the_mean():
    given = models(5)
    # A decay of 0.8 remembers 1 / (1 - 0.8) = 5 models: the weight of what went before the fifth is 4 / 5.
    for count, average in enumerate(averages(0.8, given), start=1):
        np.testing.assert_allclose(average, np.mean(given[:count], axis=0), rtol=1e-5, atol=1e-6)


def test_then_each_new_model_has_the_same_weight():
    given = models(4)
    found = averages(0.5, given)
    np.testing.assert_allclose(found[3], 0.5 * found[2] + 0.5 * given[3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[2], (given[0] + given[1]) / 4 + given[2] / 2, rtol=1e-5, atol=1e-6)


def test_what_is_pruned_is_0_in_the_average_too():
    mask = np.ones(LAYOUT.size, bool)
    mask[0] = False
    first, second = models(2)
    average = MovingAverage(0.9)
    average.after(first, WHOLE)
    found = average.after(second, MaskedLayout(LAYOUT, mask))
    assert found[0] == 0.0
    np.testing.assert_allclose(found[1:], ((first + second) / 2)[1:], rtol=1e-5, atol=1e-6)


def test_the_average_is_scored_and_delivered_and_the_clients_train_from_the_last_model():
    last, plain = scored(rounds=4)
    mean, averaged = scored(rounds=4, ema=0.99)
    for round in (1, 2, 3, 4):
        expected = np.mean([last[r] for r in range(1, round + 1)], axis=0)
        np.testing.assert_allclose(mean[round], expected, rtol=1e-5, atol=1e-6)
    assert averaged.outcome.master.tobytes() == mean[4].tobytes()
    sent = [[request.packets for _, request in ran.requests] for ran in (plain, averaged)]
    assert sent[0] == sent[1]


@pytest.mark.parametrize("rounds", [1, 3])
def test_without_a_decay_the_last_model_is_delivered(rounds):
    last, ran = scored(rounds=rounds)
    assert ran.outcome.master.tobytes() == last[rounds].tobytes()
