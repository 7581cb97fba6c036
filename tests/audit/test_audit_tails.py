"""Tails beside closed forms and scipy, which is there with the development tools."""

import math

import numpy as np
import pytest

from fedq.audit.tails import binomial_at_least, clopper_pearson, sum_of_squares_below, uncorrelated


def test_a_binomial_tail_of_few_trials_is_the_sum_by_hand():
    # P[at least 2 of 3 at 1/4] = 3 * 1/16 * 3/4 + 1/64
    assert math.isclose(binomial_at_least(2, trials=3, probability=0.25), 10 / 64)


@pytest.mark.parametrize(
    ("successes", "probability", "tail"), [(0, 0.3, 1.0), (6, 0.3, 0.0), (1, 0.0, 0.0), (5, 1.0, 1.0)]
)
def test_a_binomial_tail_at_its_edges(successes, probability, tail):
    assert binomial_at_least(successes, trials=5, probability=probability) == tail


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (1, 20), (14, 20), (20, 20), (300, 1000)])
def test_clopper_pearson_bounds_are_quantiles_of_beta_distributions(successes, trials):
    beta = pytest.importorskip("scipy.stats").beta
    lower, upper = clopper_pearson(successes, trials=trials, confidence=0.975)
    assert lower == pytest.approx(0 if successes == 0 else beta.ppf(0.025, successes, trials - successes + 1), abs=1e-9)
    assert upper == pytest.approx(
        1 if successes == trials else beta.ppf(0.975, successes + 1, trials - successes), abs=1e-9
    )


@pytest.mark.parametrize("share", [0.9, 0.97, 1.0, 1.1])
def test_a_chi_square_tail_of_many_degrees_agrees_with_scipy_to_two_percent(share):
    exact = pytest.importorskip("scipy.stats").chi2.cdf(share * 5000, 5000)
    assert sum_of_squares_below(share * 5000, count=5000) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("count", [1, 2, 8, 200, 1000])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.95, 1.3, 10])
def test_a_chi_square_tail_of_few_degrees_agrees_with_scipy(count, share):
    exact = pytest.importorskip("scipy.stats").chi2.cdf(share * count, count)
    assert sum_of_squares_below(share * count, count=count) == pytest.approx(exact, rel=1e-6)


def test_no_noise_at_all_has_no_chance():
    assert sum_of_squares_below(0.0, count=1000) == sum_of_squares_below(0.0, count=10_000) == 0.0


def test_a_series_correlates_with_itself_and_not_with_another():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 10_000))
    assert uncorrelated(one, one) < 1e-12
    assert uncorrelated(one, other) > 0.01
    assert uncorrelated(one, np.zeros(10_000)) == 1.0
