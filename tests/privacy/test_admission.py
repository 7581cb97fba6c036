"""Admission: at the budget yes, beyond it no, with a code and never because of data."""

import math
import sqlite3
import tracemalloc
from dataclasses import replace

import pytest

from fedq.privacy import REASONS, Declined, Ledger, Spend, accounting, admit, budget_guard, epsilon
from simulations.bench.privacy_ledger import PLAN, ROWS, long_ledger


def spend_of(plan) -> Spend:
    return Spend(
        noise_multiplier=plan.noise_multiplier,
        clip_norm=plan.clip_norm,
        sample_rate=plan.sample_rate,
        steps=plan.steps,
        delta=plan.delta,
        nominal_examples=plan.nominal_examples,
        noise_source="os",
        data="digits",
        run="demo",
        round=1,
    )


def test_a_round_that_just_fits_is_admitted_and_the_smallest_excess_is_not(ledger, plan):
    ledger.spend(spend_of(plan))
    exactly = epsilon([replace(plan, steps=4).mechanism], plan.delta)
    admit(ledger, replace(plan, target_epsilon=exactly))
    with pytest.raises(Declined, match="budget") as declined:
        admit(ledger, replace(plan, target_epsilon=math.nextafter(exactly, 0)))
    assert declined.value.reason == "budget"


def test_asking_spends_nothing(ledger, plan):
    admit(ledger, plan)
    assert ledger.rows() == []


def test_no_limit_admits_always(ledger, plan):
    for _ in range(3):
        ledger.spend(spend_of(replace(plan, noise_multiplier=0.1, steps=1000)))
    admit(ledger, replace(plan, target_epsilon=math.inf))


def test_the_plans_accountant_decides(ledger, plan):
    tight = epsilon([plan.mechanism], plan.delta)
    admit(ledger, replace(plan, target_epsilon=tight))
    with pytest.raises(Declined, match="budget"):
        admit(ledger, replace(plan, target_epsilon=tight, accountant="rdp"))


def test_a_broken_ledger_declines_with_its_own_code(ledger, plan):
    ledger.spend(spend_of(plan))
    with sqlite3.connect(ledger.path) as connection:
        connection.execute("UPDATE spend SET steps = 1")
    with pytest.raises(Declined, match="row 1 was changed") as declined:
        admit(ledger, plan)
    assert declined.value.reason == "ledger"


def test_two_requests_that_fit_alone_but_not_together_cannot_both_spend(ledger, plan):
    """Both were admitted on an empty ledger; the guard under the lock lets the second one fail."""
    plan = replace(plan, target_epsilon=epsilon([plan.mechanism], plan.delta) * 1.01)
    other = Ledger(ledger.path)
    admit(ledger, plan)
    admit(other, plan)
    ledger.spend(spend_of(plan), guard=budget_guard(plan))
    with pytest.raises(Declined, match="budget"):
        other.spend(spend_of(plan), guard=budget_guard(plan))
    assert len(ledger.rows()) == 1


def test_the_codes_are_a_closed_set():
    assert set(REASONS) == {"budget", "ledger", "policy"}
    with pytest.raises(ValueError, match="must be one of budget, ledger"):
        Declined("example 7 is NaN")


@pytest.mark.slow
@pytest.mark.hostile
def test_a_ledger_of_a_thousand_slightly_different_runs_is_checked_whole_and_composes_none_of_them_exactly(
    tmp_path, monkeypatch
):
    """Each of them once took half a second and 9 MB at every admission, until the ledger's lock timed out."""
    ledger, exact = long_ledger(tmp_path / "ledger.sqlite"), []
    monkeypatch.setattr(accounting, "_discretise", lambda *args: exact.append(args))
    monkeypatch.setattr(accounting, "_rdp", lambda *args: exact.append(args))
    tracemalloc.start()
    try:
        admit(ledger, PLAN, data="digits")
        number = ledger.spend(replace(spend_of(PLAN), data="digits"), guard=budget_guard(PLAN))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert number == ROWS + 1
    assert exact == []
    assert peak < 64e6  # bytes, rows and all: 1,000 losses took 9 GB
    whole = ledger.epsilon(PLAN.delta)
    with pytest.raises(Declined, match="budget"):
        admit(ledger, replace(PLAN, target_epsilon=whole))
    with sqlite3.connect(ledger.path) as connection:
        connection.execute("UPDATE spend SET steps = 1 WHERE id = 5000")
    with pytest.raises(Declined, match="row 5000 was changed"):
        admit(ledger, PLAN)
