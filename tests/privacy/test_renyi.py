"""The bound on many different mechanisms: never below other accountants' values, near them, and cheap."""

import math
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from fedq.privacy import MOST_EXACT, Mechanism, PureDP, accounting, epsilon, is_coarse
from fedq.privacy.renyi import _INTEGER, _ORDERS, _divergences, renyi_epsilon

DELTA = 1e-5


def mixture(seed: int, kinds: int) -> list[tuple[float, float, int]]:
    """Noise 0.7 to 20, rates 0.001 to 1, 1 to 50 steps each."""
    rng = np.random.default_rng(seed)
    noise, rate = np.exp(rng.uniform(np.log(0.7), np.log(20), kinds)), np.exp(rng.uniform(np.log(1e-3), 0.0, kinds))
    return [(float(n), float(r), int(s)) for n, r, s in zip(noise, rate, rng.integers(1, 51, kinds), strict=True)]


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.01), (0.5, 0.3), (4.0, 1.0), (20.0, 1e-4), (0.2, 0.9)])
def test_at_whole_orders_a_step_has_the_divergence_that_opacus_computes(noise, rate):
    from opacus.accountants.analysis.rdp import compute_rdp

    theirs = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=[float(a) for a in _INTEGER])
    ours = _divergences(np.array([noise]), np.array([rate]))[0][np.isin(_ORDERS, _INTEGER)]
    whole = np.isin(_INTEGER, _ORDERS)
    assert ours == pytest.approx(np.asarray(theirs)[whole], rel=1e-6)


def test_a_divergence_far_below_rounding_is_not_lost():
    """Of rate 1e-9 it is about q^2 a (e^(1/sigma^2) - 1) / 2, of which 1 + 1e-18 would show nothing."""
    (found,) = _divergences(np.array([1.0]), np.array([1e-9]))
    assert found[_ORDERS == 2.0] == pytest.approx(1e-18 * math.expm1(1.0), rel=1e-6)
    assert (found[_ORDERS == 2.0] >= 1e-18 * math.expm1(1.0) * (1 - 1e-15)).all()


def test_between_whole_orders_the_bound_is_not_below_the_exact_series():
    from opacus.accountants.analysis.rdp import compute_rdp

    for noise, rate, _ in mixture(0, 12):
        exact = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(_ORDERS[:40]))
        (ours,) = _divergences(np.array([noise]), np.array([rate]))
        assert (ours[:40] >= np.asarray(exact) * (1 - 1e-7)).all()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_of_a_random_mixture_it_is_never_below_the_composed_loss_and_near_the_renyi_bound_of_dp_accounting(seed):
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    mechanisms = mixture(seed, MOST_EXACT + 4)
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    exact = PLDAccountant(relation, value_discretization_interval=1e-3)
    renyi = RdpAccountant([float(a) for a in _INTEGER], relation)
    for noise, rate, steps in mechanisms:
        event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
        exact.compose(event, steps)
        renyi.compose(event, steps)
    found = epsilon([Mechanism(*m) for m in mechanisms], DELTA)
    assert found >= exact.get_epsilon(DELTA) * (1 - 1e-2)  # theirs rounds up, by its mesh
    assert found <= renyi.get_epsilon(DELTA) * (1 + 1e-6)  # at the same orders, and between them


def test_full_batches_of_many_noises_cost_at_least_what_the_gaussian_of_them_all_does():
    """They compose to one Gaussian mechanism, mu^2 the sum of steps / sigma^2, whose curve is exact."""
    from fedq.privacy.gdp import gaussian_delta

    many = [Mechanism(30.0 + i, 1.0, 2) for i in range(100)]
    mu = math.sqrt(sum(m.steps / m.noise_multiplier**2 for m in many))
    found = epsilon(many, DELTA)
    assert gaussian_delta(mu, found) <= DELTA
    assert gaussian_delta(mu, found / 1.15) > DELTA  # Renyi's known gap


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_up_to_the_cap_the_accountant_composes_and_beyond_it_the_coarse_bound(accountant):
    few, cap = [Mechanism(8.0 + i, 0.1, 20) for i in range(MOST_EXACT)], Mechanism(30.0, 0.1, 1)
    assert not is_coarse([*few, *few, PureDP(0.1)])
    assert is_coarse([*few, cap])
    assert epsilon([*few, cap], DELTA, accountant=accountant) > epsilon(few, DELTA, accountant=accountant)
    assert epsilon([*few, cap, PureDP(0.1)], DELTA) == pytest.approx(epsilon([*few, cap], DELTA) + 0.1)


@pytest.mark.hostile
@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_a_thousand_slightly_different_noises_are_bounded_without_an_exact_composition_of_any(accountant, monkeypatch):
    """Each once cost a discretised loss of 9 MB and half a second at every admission, or a Renyi series of 25 ms."""
    asked: list[object] = []
    monkeypatch.setattr(accounting, "_discretise", lambda *args: asked.append(args))
    monkeypatch.setattr(accounting, "_rdp", lambda *args: asked.append(args))
    tracemalloc.start()
    try:
        found = epsilon([Mechanism(5 + 1e-3 * i, 0.01, 10) for i in range(1000)] * 10, DELTA, accountant=accountant)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < found < math.inf
    assert asked == []
    assert peak < 32e6


def test_discretised_losses_that_are_kept_are_bounded_in_number_and_the_latest_are_not_made_again(monkeypatch):
    made = []
    monkeypatch.setattr(accounting, "_DISCRETISED", OrderedDict())
    monkeypatch.setattr(accounting, "_discretise", lambda kinds, *_: made.append(kinds) or kinds)
    for noise in range(1, 41):
        kinds = tuple((float(noise + i), 0.1, 8) for i in range(1 + noise % MOST_EXACT))
        assert accounting._discretised(kinds, 0.01, 1e-8) == kinds
        assert sum(map(len, accounting._DISCRETISED.values())) <= accounting._MOST_KEPT
    assert accounting._discretised(kinds, 0.01, 1e-8) == kinds
    assert len(made) == 40


@pytest.mark.parametrize("mechanism", [(1e-200, 0.5, 1), (1e-9, 1e-3, 1)])
def test_hardly_any_noise_is_a_huge_epsilon_or_none_that_is_finite(mechanism):
    assert renyi_epsilon([mechanism], DELTA) > 1e10


def test_hardly_any_sampling_costs_hardly_anything():
    assert 0 <= renyi_epsilon([(1.0, 1e-300, 10)], 0.5) < 1e-2
