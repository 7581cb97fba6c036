"""Bounds from counts: published values, and simulated mechanisms whose epsilon is known."""

import numpy as np
import pytest

from fedq.audit.bounds import Errors, Guesses, GuessesByShare, curve_p_value, epsilon_bound, mechanism_bound, p_value
from fedq.audit.curves import GaussianCurve, epsilon_of
from fedq.privacy import Mechanism

EXACT = Mechanism(1.0, 1.0, 1)  # mu = 1


def guesses(mu, *, canaries, seed, share=0.1):
    """What is guessed of canaries that do not disturb each other, under a curve of distance mu."""
    random = np.random.default_rng(seed)
    included = random.random(canaries) < 0.5
    order = np.argsort(random.normal(size=canaries) + mu * included)
    half = round(share * canaries / 2)
    correct = (~included[order[:half]]).sum() + included[order[-half:]].sum()
    return Guesses(canaries, 2 * half, int(correct))


def test_the_bound_of_the_paper_s_example():
    """Steinke et al. 2023, appendix D: 75 of 100 guesses right of 1,000 canaries, delta 1e-4: 0.673."""
    assert epsilon_bound(Guesses(1000, 100, 75), delta=1e-4, confidence=0.95) == pytest.approx(0.673, abs=5e-4)


def test_without_delta_the_p_value_is_a_binomial_tail():
    # Three of three at epsilon 0: a coin each.
    assert p_value(Guesses(3, 3, 3), epsilon=0.0, delta=0.0) == pytest.approx(1 / 8)


def test_several_shares_split_the_risk():
    few, all_of_them = Guesses(1000, 100, 100), Guesses(1000, 1000, 1000)
    seen, alone = GuessesByShare((few, all_of_them)), epsilon_bound(all_of_them, delta=1e-5, confidence=0.975)
    assert seen.epsilon_bound(delta=1e-5, confidence=0.95) == alone
    assert seen.curve_p_value(GaussianCurve(1.0)) == 2 * curve_p_value(all_of_them, GaussianCurve(1.0))
    assert seen.refutes(GaussianCurve(1.0), 0.01)
    assert not GuessesByShare((few, few)).refutes(GaussianCurve(4.0), 0.01)


def test_half_of_the_guesses_right_bounds_nothing():
    seen = Guesses(1000, 100, 50)
    assert epsilon_bound(seen, delta=1e-5, confidence=0.95) == 0.0
    assert mechanism_bound(seen, EXACT, delta=1e-5, confidence=0.95) == 0.0


def test_a_curve_is_held_to_what_it_says():
    seen = guesses(1.0, canaries=2000, seed=0)
    assert curve_p_value(seen, GaussianCurve(1.0)) > 0.05
    assert curve_p_value(seen, GaussianCurve(0.3)) < 1e-3


def test_bounds_lie_below_the_truth_in_fifty_simulations_of_fifty():
    """One in twenty may lie above; that the bound is not tight leaves room."""
    truth = epsilon_of(EXACT, 1e-5)
    for seed in range(50):
        seen = guesses(1.0, canaries=1000, seed=seed)
        assert epsilon_bound(seen, delta=1e-5, confidence=0.95) <= truth
        assert mechanism_bound(seen, EXACT, delta=1e-5, confidence=0.95) <= truth


@pytest.mark.parametrize("seed", range(5))
def test_one_run_with_many_canaries_reaches_half_of_epsilon_eight(seed):
    claimed = Mechanism(1 / 1.666, 1.0, 1)
    bound = mechanism_bound(guesses(1.666, canaries=16_384, seed=seed), claimed, delta=1e-5, confidence=0.95)
    assert 4 <= bound <= epsilon_of(claimed, 1e-5)


def test_a_curve_s_bound_is_larger_than_that_of_any_mechanism():
    seen = guesses(1.666, canaries=8192, seed=1)
    assert mechanism_bound(seen, EXACT, delta=1e-5, confidence=0.95) > epsilon_bound(seen, delta=1e-5, confidence=0.95)


def test_a_bound_from_independent_runs_is_that_of_their_error_rates():
    """No error in 1,000 runs on each side: both rates are below 0.00368 = 1 - 0.025^(1/1000) at half the risk."""
    seen = Errors(out=1000, wrongly_in=0, included=1000, wrongly_out=0)
    mu = 2 * 2.6802  # of a normal's 0.99632 quantile
    assert seen.refutes(GaussianCurve(mu - 0.01), 0.05)
    assert not seen.refutes(GaussianCurve(mu + 0.01), 0.05)


@pytest.mark.slow
def test_a_sampled_mechanism_s_bound_is_near_that_of_a_gaussian_curve():
    """Many sampled steps have a nearly Gaussian curve (Bu et al. 2020, arXiv:1911.11607)."""
    seen = guesses(1.2, canaries=4000, seed=3)
    sampled = mechanism_bound(seen, Mechanism(4.0, 0.5, 100), delta=1e-5, confidence=0.95)
    assert sampled == pytest.approx(mechanism_bound(seen, EXACT, delta=1e-5, confidence=0.95), rel=0.1)


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (10, 0, 0)])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(ValueError, match="each must be at most the next"):
        Guesses(*counts)
