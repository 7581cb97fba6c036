"""The public bound on an update of DP-SGD, against what the mechanism really does."""

import math

import numpy as np
import pytest

from fedq.privacy import DPPlan
from fedq.privacy.longest import longest_update


def plan(**changes):
    values = {"noise_multiplier": 1.0, "clip_norm": 2.0, "sample_rate": 1.0, "steps": 1, "nominal_examples": 100}
    return DPPlan(**{**values, **changes}, target_epsilon=math.inf, delta=1e-5)


def test_with_hardly_any_noise_it_is_the_clip_norm_times_what_sgd_makes_of_it():
    quiet = plan(noise_multiplier=1e-4, steps=3)
    assert longest_update(quiet, lr=0.5, scalars=10) == pytest.approx(0.5 * 2.0 * 3, rel=0.01)


def test_momentum_adds_up_the_steps_before():
    quiet = plan(noise_multiplier=1e-4, steps=3)
    # Gradients count 1 + 0.5 + 0.25, 1 + 0.5 and 1 times.
    assert longest_update(quiet, lr=1.0, scalars=10, momentum=0.5) == pytest.approx(2.0 * 4.25, rel=0.01)


def test_with_loud_noise_it_is_the_length_of_the_noise():
    loud = plan(noise_multiplier=1000.0, steps=4)
    # Standard deviation 1000 * 2 / 100 in each of 10,000 coordinates, in each of 4 steps; and 5 % for its spread.
    assert longest_update(loud, lr=1.0, scalars=10_000) == pytest.approx(20 * 100 * 2, rel=0.06)


def test_it_grows_in_proportion_to_the_learning_rate():
    one, ten = (longest_update(plan(), lr=lr, scalars=50) for lr in (0.1, 1.0))
    assert ten == pytest.approx(10 * one)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_no_update_is_longer_even_if_all_gradients_agree(momentum):
    """2,000 rounds in which each drawn example's gradient has the clip norm and the same direction."""
    rng, asked = np.random.default_rng(0), plan(sample_rate=0.1, steps=5, nominal_examples=300, noise_multiplier=0.7)
    scalars, lengths = 40, []
    for _ in range(2000):
        update, velocity = np.zeros(scalars), np.zeros(scalars)
        for _ in range(asked.steps):
            total = asked.noise_std * rng.normal(size=scalars)
            total[0] += asked.clip_norm * rng.binomial(asked.nominal_examples, asked.sample_rate)
            velocity = momentum * velocity + total / asked.divisor
            update += 0.3 * velocity
        lengths.append(np.linalg.norm(update))
    bound = longest_update(asked, lr=0.3, scalars=scalars, momentum=momentum)
    assert max(lengths) < bound < 2 * np.median(lengths)
