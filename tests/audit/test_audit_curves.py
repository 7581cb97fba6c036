"""Trade-off curves against closed forms and against each other."""

import math

import pytest

from fedq.audit.curves import AccountedCurve, GaussianCurve, curve_of, epsilon_of
from fedq.privacy import Mechanism, epsilon


def test_no_distance_tells_nothing():
    assert GaussianCurve(0.0).least(0.3) == pytest.approx(0.3)
    assert GaussianCurve(0.0).epsilon(1e-5) == 0.0


def test_a_gaussian_curve_has_its_known_epsilon():
    """mu = 1 at delta 0.1269367: epsilon 1, since delta(1) = Phi(-1/2) - e Phi(-3/2) (Balle & Wang 2018)."""
    delta = 0.3085375387 - math.e * 0.0668072013
    assert GaussianCurve(1.0).epsilon(delta) == pytest.approx(1.0, abs=1e-6)


def test_full_batches_compose_to_one_gaussian():
    assert curve_of(Mechanism(3.0, 1.0, 9)) == GaussianCurve(1.0)


def test_one_accountant_s_point_is_the_curve_of_epsilon_and_delta():
    curve = AccountedCurve((1.0,), (0.0,))
    assert curve.least(0.1) == pytest.approx(0.1 / math.e)
    assert curve.least(0.9) == pytest.approx(1 - math.e * 0.1)


@pytest.mark.parametrize("probability", [0.003, 0.02, 0.1, 0.4])
def test_the_accountant_s_curve_lies_close_below_the_exact_one(probability):
    """rate 1 - 1e-12 is accounted for, rate 1 is known in closed form."""
    exact, accounted = curve_of(Mechanism(2.0, 1.0, 4)), curve_of(Mechanism(2.0, 1 - 1e-12, 4))
    assert 0.85 * exact.least(probability) <= accounted.least(probability) <= 1.001 * exact.least(probability)


def test_the_claimed_epsilon_is_the_accountant_s_where_batches_are_sampled():
    mechanism = Mechanism(2.0, 0.5, 4)
    assert epsilon_of(mechanism, 1e-5) == epsilon([mechanism], 1e-5)
    assert epsilon_of(Mechanism(2.0, 1.0, 4), 1e-5) <= epsilon([Mechanism(2.0, 1.0, 4)], 1e-5)
