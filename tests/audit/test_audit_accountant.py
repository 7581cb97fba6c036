"""A second opinion on epsilon, and what it holds against plans, targets and ledgers."""

import sys
from dataclasses import replace

import pytest

from fedq.audit.accountant import epsilon_by_dp_accounting, exceeds, target_check, why_target_not_checked
from fedq.audit.curves import GaussianCurve
from fedq.privacy import Mechanism, PureDP, calibrate, epsilon
from tests.audit.conftest import PLAN


def test_full_batches_have_the_epsilon_of_a_gaussian():
    """mu = sqrt(4) / 2 = 1, in closed form (Balle & Wang 2018)."""
    assert epsilon_by_dp_accounting([Mechanism(2.0, 1.0, 4)], 1e-5) == pytest.approx(
        GaussianCurve(1.0).epsilon(1e-5), rel=1e-3
    )


def test_pure_epsilons_are_added():
    once = Mechanism(2.0, 0.1, 10)
    assert epsilon_by_dp_accounting([once, PureDP(0.5)], 1e-5) == pytest.approx(
        0.5 + epsilon_by_dp_accounting([once], 1e-5)
    )
    assert epsilon_by_dp_accounting([], 1e-5) == 0.0


@pytest.mark.integration
@pytest.mark.parametrize(
    ("target", "rate", "steps"), [(8.0, 0.5, 200), (1.0, 0.01, 3000), (0.2, 1.0, 5), (3.0, 0.05, 400), (20.0, 1.0, 2)]
)
def test_what_fedq_calibrates_is_never_called_too_little(target, rate, steps):
    noise = calibrate(target_epsilon=target, delta=1e-5, sample_rate=rate, steps=steps)
    mechanism = Mechanism(noise, rate, steps)
    assert not exceeds(epsilon_by_dp_accounting([mechanism], 1e-5), target)
    # Nor is it far below: the two accountants are within 2 % of each other.
    assert epsilon_by_dp_accounting([mechanism], 1e-5) == pytest.approx(epsilon([mechanism], 1e-5), rel=0.02)


@pytest.mark.hostile
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_too_little_noise_is_held_against_the_target_and_not_against_the_plan(share):
    """Plan, ledger and claim agreed with each other on half of the noise, and no audit said a word."""
    noise = calibrate(target_epsilon=8.0, delta=1e-5, sample_rate=1.0, steps=4)
    plan = replace(PLAN, noise_multiplier=share * noise)
    check = target_check([replace(PLAN, noise_multiplier=noise), plan], rounds=2)
    assert check.p_value == 0.0
    assert "not 8" in check.seen
    assert target_check([replace(PLAN, noise_multiplier=noise)], rounds=2).p_value == 1.0


def test_the_rounds_are_those_that_a_client_may_take_part_in():
    noise = calibrate(target_epsilon=8.0, delta=1e-5, sample_rate=1.0, steps=2)
    plan = replace(PLAN, noise_multiplier=noise)
    assert [target_check([plan], rounds=rounds).p_value for rounds in (1, 2)] == [1.0, 0.0]


def test_the_evaluation_is_part_of_what_is_spent():
    noise = calibrate(target_epsilon=8.0, delta=1e-5, sample_rate=1.0, steps=2)
    assert target_check([replace(PLAN, noise_multiplier=noise, evaluation_epsilon=0.5)], rounds=1).p_value == 0.0


def test_a_plan_without_a_target_claims_nothing():
    assert target_check([replace(PLAN, target_epsilon=float("inf"))], rounds=2) is None


def test_without_the_extra_an_audit_says_what_it_did_not_look_at(monkeypatch):
    assert why_target_not_checked(PLAN) is None
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    assert why_target_not_checked(PLAN) == "needs another accountant; pip install 'fedq[audit]'"
    assert "names no target" in why_target_not_checked(replace(PLAN, target_epsilon=float("inf")))
