"""The Gaussian curve that is nowhere below: exact where the mechanism is Gaussian, above wherever it is not."""

import math

import pytest

from fedq.privacy import Mechanism, PureDP, epsilon
from fedq.privacy.gdp import DELTAS, gaussian_delta, gaussian_mu


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (2.0, 4), (5.0, 100)])
def test_full_batches_are_the_gaussian_mechanism_of_mu_root_steps_over_noise(noise, steps):
    """Dong, Roth, Su 2019, corollary 3.3; from above, within the accountant's error."""
    exact = math.sqrt(steps) / noise
    assert exact <= gaussian_mu([Mechanism(noise, 1.0, steps)]) <= 1.02 * exact


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_no_epsilon_of_the_run_lies_above_the_curve(rate):
    mechanisms = [Mechanism(1.5, rate, 60)]
    mu = gaussian_mu(mechanisms)
    for delta in DELTAS:
        assert gaussian_delta(mu, epsilon(mechanisms, delta)) >= delta


def test_a_pure_mechanism_has_a_mu_too():
    """(0.1, 0)-DP: at delta 1e-9 the curve still has to reach epsilon 0.1."""
    mu = gaussian_mu([PureDP(0.1)])
    assert gaussian_delta(mu, 0.1) >= max(DELTAS)


def test_the_curve_is_the_known_one():
    """mu = 1, epsilon = 1: Phi(-1/2) - e Phi(-3/2) = 0.30854 - 2.71828 * 0.06681 = 0.12694."""
    assert gaussian_delta(1.0, 1.0) == pytest.approx(0.12694, abs=1e-5)
    assert gaussian_delta(0.0, 1.0) == 0.0
    assert 0 <= gaussian_delta(0.1, 50.0) < 1e-300  # far in the tail: no overflow, nothing negative


def test_nothing_spent_is_mu_zero():
    assert gaussian_mu([]) == 0.0
