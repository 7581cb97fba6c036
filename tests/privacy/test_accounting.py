"""Epsilon and calibration against closed forms and against dp-accounting."""

import math
import random as ordering
import time
from itertools import pairwise
from statistics import NormalDist

import pytest

from fedq.privacy import Mechanism, calibrate, epsilon
from fedq.privacy.accounting import _epsilon

DELTA = 1e-5
# (noise multiplier, rate, steps): large and small rates, few and many steps, epsilon from 0.2 to 13
GRID = [
    (8.0, 0.5, 200),
    (3.0, 0.5, 200),
    (5.27, 0.1, 1200),
    (1.0, 0.01, 1000),
    (0.7, 0.005, 300),
    (60.0, 0.3, 100),
]


def gaussian_delta(mu: float, eps: float) -> float:
    """Exact delta of a mu-GDP mechanism at epsilon (Balle & Wang 2018, theorem 8)."""
    cdf = NormalDist().cdf
    return cdf(mu / 2 - eps / mu) - math.exp(eps) * cdf(-mu / 2 - eps / mu)


@pytest.mark.parametrize(("noise", "steps"), [(5.0, 1), (5.0, 100), (2.0, 50), (30.0, 20)])
def test_full_batches_cost_what_the_closed_form_of_the_gaussian_says(noise, steps):
    # n Gaussian mechanisms compose to one with mu = sqrt(n) / sigma, whose curve is known exactly.
    found = epsilon([Mechanism(noise, 1.0, steps)], DELTA)
    mu = math.sqrt(steps) / noise
    assert gaussian_delta(mu, found) <= DELTA  # never below the truth
    assert gaussian_delta(mu, found / 1.01) > DELTA  # and within 1 % of it


@pytest.mark.parametrize(("noise", "rate", "steps"), GRID)
def test_prv_agrees_with_dp_accounting_and_is_never_below_it(noise, rate, steps):
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.pld import PLDAccountant

    reference = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    reference.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)), steps)
    theirs = reference.get_epsilon(DELTA)  # pessimistic as well, on a mesh of 1e-4
    ours = epsilon([Mechanism(noise, rate, steps)], DELTA)
    assert theirs * (1 - 1e-4) <= ours <= theirs * 1.01


def test_two_different_runs_over_the_same_data_cost_what_one_accountant_says_of_both():
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.pld import PLDAccountant

    reference = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    reference.compose(dp_event.PoissonSampledDpEvent(0.5, dp_event.GaussianDpEvent(8.0)), 100)
    reference.compose(dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(3.0)), 300)
    theirs = reference.get_epsilon(DELTA)
    ours = epsilon([Mechanism(8.0, 0.5, 100), Mechanism(3.0, 0.1, 300)], DELTA)
    assert theirs * (1 - 1e-4) <= ours <= theirs * 1.01


@pytest.mark.parametrize(("noise", "rate", "steps"), GRID)
def test_rdp_is_looser_than_prv_and_within_its_known_gap(noise, rate, steps):
    mechanism = [Mechanism(noise, rate, steps)]
    tight, loose = epsilon(mechanism, DELTA), epsilon(mechanism, DELTA, accountant="rdp")
    assert tight <= loose <= 1.5 * tight


def test_rdp_of_one_full_batch_is_its_formula():
    # Renyi divergence alpha / (2 sigma^2), converted at the best order (Balle et al. 2020, theorem 21)
    sigma = 2.0
    orders = [1 + k / 10 for k in range(1, 100)] + [float(k) for k in range(12, 64)]
    by_hand = min(
        a / (2 * sigma**2) + math.log((a - 1) / a) - (math.log(DELTA) + math.log(a)) / (a - 1) for a in orders
    )
    assert epsilon([Mechanism(sigma, 1.0, 1)], DELTA, accountant="rdp") == pytest.approx(by_hand)


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_k_rounds_of_s_steps_cost_exactly_one_run_of_k_times_s(accountant):
    rounds = [Mechanism(8.0, 0.5, 5)] * 40
    assert epsilon(rounds, DELTA, accountant=accountant) == epsilon(
        [Mechanism(8.0, 0.5, 200)], DELTA, accountant=accountant
    )


def test_the_order_of_mechanisms_does_not_change_a_bit():
    mechanisms = [
        Mechanism(8.0, 0.5, 5),
        Mechanism(6.0, 0.1, 20),
        Mechanism(8.0, 0.5, 7),
        Mechanism(7.0, 0.2, 3),
    ]
    shuffled = mechanisms[:]
    ordering.Random(0).shuffle(shuffled)
    assert shuffled != mechanisms
    assert epsilon(shuffled, DELTA) == epsilon(mechanisms, DELTA)


def test_nothing_spent_costs_nothing():
    assert epsilon([], DELTA) == 0.0
    assert epsilon([Mechanism(1.0, 0.5, 0)], DELTA) == 0.0


def test_epsilon_grows_with_every_round_and_falls_with_delta_and_noise():
    spent = [epsilon([Mechanism(8.0, 0.5, 5 * k)], DELTA) for k in range(2, 41, 2)]
    assert all(later > earlier for earlier, later in pairwise(spent))
    assert epsilon([Mechanism(8.0, 0.5, 200)], 1e-6) > spent[-1]
    assert epsilon([Mechanism(8.1, 0.5, 200)], DELTA) < spent[-1]
    assert epsilon([Mechanism(8.0, 0.49, 200)], DELTA) < spent[-1]


def test_a_tiny_delta_falls_back_on_renyi_rather_than_on_round_off():
    mechanism = [Mechanism(8.0, 0.5, 200)]
    assert epsilon(mechanism, 1e-12) == pytest.approx(epsilon(mechanism, 1e-12, accountant="rdp"), rel=0.05)
    assert epsilon(mechanism, 1e-12) > epsilon(mechanism, 1e-9)


@pytest.mark.parametrize("noise", [1e-9, 0.05, 0.11])
def test_hardly_any_noise_costs_a_huge_finite_epsilon_at_once(noise):
    start = time.process_time()
    # Full batches have mu = sqrt(10) / noise and cost about mu^2 / 2; half batches somewhat less.
    assert 2 / noise**2 < epsilon([Mechanism(noise, 0.5, 10)], DELTA) < 6 / noise**2 + 100 / noise
    assert time.process_time() - start < 5


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(("target", "rate", "steps"), [(8.0, 0.25, 200), (1.0, 1.0, 30)])
def test_calibrated_noise_meets_its_target_and_a_third_of_a_percent_less_does_not(target, rate, steps, accountant):
    noise = calibrate(target_epsilon=target, delta=DELTA, sample_rate=rate, steps=steps, accountant=accountant)
    assert epsilon([Mechanism(noise, rate, steps)], DELTA, accountant=accountant) <= target
    assert epsilon([Mechanism(noise / 1.003, rate, steps)], DELTA, accountant=accountant) > target


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(
    "target", [0.05, 57.0, 1e4, *(pytest.param(t, marks=pytest.mark.slow) for t in (0.3, 3.0, 20.0, 300.0))]
)
@pytest.mark.parametrize(("rate", "steps"), [(0.005, 1000), (1.0, 3)])
def test_from_the_least_to_the_largest_budget_calibrated_noise_meets_it_and_hardly_less_does_not(
    target, rate, steps, accountant
):
    """The cheap bound that brackets the search has no say in the answer, however loose it is there."""
    noise = calibrate(target_epsilon=target, delta=DELTA, sample_rate=rate, steps=steps, accountant=accountant)
    assert epsilon([Mechanism(noise, rate, steps)], DELTA, accountant=accountant) <= target
    assert epsilon([Mechanism(noise / 1.003, rate, steps)], DELTA, accountant=accountant) > target


def test_calibration_of_one_full_batch_agrees_with_the_analytic_gaussian():
    noise = calibrate(target_epsilon=1.0, delta=DELTA, sample_rate=1.0, steps=1)
    assert gaussian_delta(1 / noise, 1.0) <= DELTA
    assert gaussian_delta(1.01 / noise, 1.0) > DELTA


def test_an_easy_target_needs_little_noise():
    assert calibrate(target_epsilon=1000.0, delta=DELTA, sample_rate=0.5, steps=1) < 0.1


def test_epsilon_of_every_participation_count_of_a_run_is_quick():
    _epsilon.cache_clear()
    start = time.process_time()
    for count in range(1, 41):
        epsilon([Mechanism(8.0, 0.5, 5 * count)], DELTA)
    assert time.process_time() - start < 5  # about 0.6 s here; without the shared discretisation 15 s


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0, 0.5, 1), "noise_multiplier=0.0"),
        ((-1.0, 0.5, 1), "noise_multiplier=-1.0"),
        ((math.nan, 0.5, 1), "noise_multiplier=nan"),
        ((math.inf, 0.5, 1), "noise_multiplier=inf"),
        ((1.0, 0.0, 1), "sample_rate=0.0"),
        ((1.0, 1.01, 1), "sample_rate=1.01"),
        ((1.0, math.nan, 1), "sample_rate=nan"),
        ((1.0, 0.5, -1), "steps=-1"),
        ((1.0, 0.5, 1.5), "steps=1.5"),
        ((1.0, 0.5, True), "steps=True"),
    ],
)
def test_a_mechanism_out_of_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Mechanism(*values)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_out_of_range_is_refused(delta):
    with pytest.raises(ValueError, match="delta="):
        epsilon([], delta)
    with pytest.raises(ValueError, match="delta="):
        calibrate(target_epsilon=1.0, delta=delta, sample_rate=0.5, steps=1)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_a_target_out_of_range_is_refused(target):
    with pytest.raises(ValueError, match="target_epsilon="):
        calibrate(target_epsilon=target, delta=DELTA, sample_rate=0.5, steps=1)


def test_an_unknown_accountant_and_nothing_to_calibrate_are_refused():
    with pytest.raises(ValueError, match="prv, rdp"):
        epsilon([], DELTA, accountant="moments")
    with pytest.raises(ValueError, match="prv, rdp"):
        calibrate(target_epsilon=1.0, delta=DELTA, sample_rate=0.5, steps=1, accountant="moments")
    with pytest.raises(ValueError, match="steps=0"):
        calibrate(target_epsilon=1.0, delta=DELTA, sample_rate=0.5, steps=0)
    with pytest.raises(ValueError, match="no noise multiplier"):
        calibrate(target_epsilon=1e-9, delta=1e-12, sample_rate=1.0, steps=10**6)
