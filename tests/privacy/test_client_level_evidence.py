"""The verdict on client-level DP: true with every piece there; each piece taken away turns it false and is named."""

import math
import re
from dataclasses import fields, replace

import pytest

from fedq.privacy import (
    ClientLevelEvidence,
    ClientLevelPlan,
    Mechanism,
    ServerEvidence,
    ServerRound,
    Spend,
    charged,
    epsilon,
    is_client_private,
    spent_by_one_client,
)

PLAN = ClientLevelPlan(2.0, 0.5, cohort=2, clients=3, charges=2, quantile=0.5, target_epsilon=8.0)


def a_round(number, *asked):
    done = ClientLevelEvidence(
        round=number,
        noise_source="os",
        noise_multiplier=2.0,
        sum_multiplier=PLAN.sum_multiplier,
        count_std=PLAN.count_std,
        clip_norm=0.5 * number,
        noised_scalars=100,
        divisor=2,
        spend_row_id=number,
        mechanism="discrete-gaussian",
    )
    spend = Spend(
        noise_multiplier=2.0,
        clip_norm=0.5 * number,
        sample_rate=1.0,
        steps=1,
        delta=1e-5,
        nominal_examples=2,
        noise_source="os",
        data="digits",
        run="demo",
        round=number,
        unit="client",
        adjacency="zero-out-one",
        mechanism="discrete-gaussian",
    )
    return ServerRound(number, asked, 100, done, spend)


WHOLE = ServerEvidence(
    plan=PLAN,
    rounds=(a_round(1, "a", "b"), a_round(2, "c", "a"), a_round(3, "b", "c")),
    unproven=(),
    other_runs=(),
    ledger_verified=True,
    decisions=(),
    cohorts_from="seed",
    data_fitted_on_private=False,
    delivered_unnoised=(),
    run="demo",
)
SECRET = replace(
    WHOLE,
    plan=replace(PLAN, sampling="poisson", charges=3),
    rounds=tuple(replace(r, spend=replace(r.spend, sample_rate=2 / 3)) for r in WHOLE.rounds),
    cohorts_from="os",
)


def last(**changes):
    return replace(WHOLE, rounds=(*WHOLE.rounds[:-1], replace(WHOLE.rounds[-1], **changes)))


def last_done(**changes):
    return last(done=replace(WHOLE.rounds[-1].done, **changes))


def last_spend(**changes):
    return last(spend=replace(WHOLE.rounds[-1].spend, **changes))


@pytest.mark.parametrize("evidence", [WHOLE, SECRET], ids=["cyclic", "poisson"])
def test_with_every_piece_there_whole_clients_are_protected(evidence):
    assert is_client_private(evidence) == (True, [])


DAMAGED = {
    "no round": (replace(WHOLE, rounds=()), "no round is on record"),
    "a round without the mechanism": (last(done=None), "round 3: no noise was added"),
    "a round without a spend": (last(spend=None), "round 3: no spend in the ledger"),
    "seeded noise": (last_done(noise_source="seeded"), "round 3: noise that others can reproduce"),
    "a spend of seeded noise": (last_spend(noise_source="seeded"), "noise that others can reproduce"),
    "less noise than spent": (last_done(noise_multiplier=1.9), "noise multiplier 1.9, 2.0 spent"),
    "less noise on the sum": (last_done(sum_multiplier=2.0), "noise of 2 clips on the sum, 2.3094 needed"),
    "no noise on the sum": (last_done(sum_multiplier=0.0), "noise of 0 clips"),
    "noise that is not a number": (last_done(sum_multiplier=math.nan), "noise of nan clips"),
    "less noise on the count": (last_done(count_std=1.0), "nan needed"),
    "a count without noise": (last_done(count_std=None), "the clip followed a count"),
    "another clip": (last_done(clip_norm=9.0), "clip norm 9.0, 1.5 spent"),
    "values without noise": (last_done(noised_scalars=99), "99 values noised of 100 averaged"),
    "no values": (last(values=0), "100 values noised of 0 averaged"),
    "another divisor": (last_done(divisor=3), "divided by 3, a cohort is 2"),
    "amplification that was not": (last_spend(sample_rate=0.5), "1 steps at rate 0.5 spent"),
    "no step": (last_spend(steps=0), "0 steps at rate 1.0 spent"),
    "another delta": (last_spend(delta=1e-3), "spent at delta 0.001"),
    "a spend of another round": (last_spend(round=2), "the spend is for round 2"),
    "a spend of another run": (last_spend(run="other"), "the spend is of run 'other'"),
    "a spend of examples": (last_spend(unit="example"), "of another kind: example"),
    "a spend of other neighbours": (last_spend(adjacency="replace-one"), "of another kind: client, replace-one"),
    "one row for two rounds": (last_done(spend_row_id=2), "stands for several rounds"),
    "a round left out": (replace(WHOLE, rounds=WHOLE.rounds[1:]), "not 1, 2, 3"),
    "a spend without noise": (replace(WHOLE, unproven=(4,)), "without evidence of noise in round 4"),
    "other runs that nobody counted": (replace(WHOLE, other_runs=None), "what other runs spent from the ledger is not"),
    "other runs that spent the budget": (
        replace(WHOLE, other_runs=[replace(WHOLE.rounds[0].spend, run="other", noise_multiplier=0.4)]),
        "is beyond the target 8",
    ),
    "spends of examples in the ledger": (
        replace(WHOLE, other_runs=[replace(WHOLE.rounds[0].spend, run="other", unit="example")]),
        "spends of another kind: example, zero-out-one, discrete-gaussian",
    ),
    "float noise where exact noise was spent": (
        last_done(mechanism="gaussian"),
        "gaussian noise, discrete-gaussian spent",
    ),
    "float noise where exact noise was planned": (
        last(
            done=replace(WHOLE.rounds[-1].done, mechanism="gaussian"),
            spend=replace(WHOLE.rounds[-1].spend, mechanism="gaussian"),
        ),
        "of another kind: client, zero-out-one, gaussian",
    ),
    "a damaged ledger": (replace(WHOLE, ledger_verified=False), "was not verified"),
    "a ledger that was accepted": (replace(WHOLE, decisions=("2026-01-02 accepted",)), "word: 2026-01-02 accepted"),
    "a client asked too often": (last(asked=("a", "b")), "one client counted in 3 rounds, the noise is for 2"),
    "a budget exceeded": (replace(WHOLE, plan=replace(PLAN, target_epsilon=1.0)), "is beyond the target 1"),
    "a delta for no one": (replace(WHOLE, plan=replace(PLAN, delta=0.05)), "allows one client of 3 to leak whole"),
    "a delta beyond any": (replace(WHOLE, plan=replace(PLAN, delta=0.002)), "delta 0.002 is beyond 0.001"),
    "a scaler fitted on many": (replace(WHOLE, data_fitted_on_private=True), "scaled by statistics"),
    "a loader that does not say": (replace(WHOLE, data_fitted_on_private=None), "the loader does not say"),
    "an array without noise": (replace(WHOLE, delivered_unnoised=("bn.count",)), "without noise: bn.count"),
    "secret cohorts of a seed": (replace(SECRET, cohorts_from="seeded"), "cohorts that others can reproduce"),
    "dealt cohorts called secret": (replace(SECRET, cohorts_from="seed"), "cohorts that others can reproduce"),
    "more rounds than accounted": (
        replace(SECRET, plan=replace(SECRET.plan, charges=2)),
        "one client counted in 3 rounds, the noise is for 2",
    ),
}


@pytest.mark.parametrize(("evidence", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_without_a_piece_they_are_not(evidence, reason):
    private, reasons = is_client_private(evidence)
    assert not private
    assert any(re.search(re.escape(reason), said) for said in reasons), reasons


def test_every_default_counts_against():
    private, reasons = is_client_private(ServerEvidence(PLAN))
    assert not private
    for field in fields(ServerEvidence):
        if field.name in ("plan", "rounds", "unfinished", "run"):
            continue
        better = replace(ServerEvidence(PLAN), **{field.name: getattr(WHOLE, field.name)})
        if field.name != "cohorts_from":  # counts under poisson
            assert len(is_client_private(better)[1]) < len(reasons), field.name


def test_where_turns_are_dealt_a_round_counts_against_those_who_were_asked():
    twice = epsilon([Mechanism(2.0, 1.0, 2)], 1e-5)
    assert spent_by_one_client(WHOLE) == twice
    assert spent_by_one_client(SECRET) == epsilon([Mechanism(2.0, 2 / 3, 3)], 1e-5)


def test_a_round_that_was_spent_and_did_not_end_counts_against_all():
    interrupted = replace(WHOLE, unfinished=(replace(WHOLE.rounds[-1].spend, round=4),))
    assert spent_by_one_client(interrupted) == epsilon([Mechanism(2.0, 1.0, 3)], 1e-5)


def test_of_other_runs_the_most_that_one_client_can_have_spent_in_each_counts():
    """Three rounds of 2 of 3 clients: nobody is dealt more than 2 of them. Of secret rounds all count."""
    other = [replace(r.spend, run="other", noise_multiplier=3.0) for r in WHOLE.rounds]
    dealt = replace(WHOLE, other_runs=other)
    assert spent_by_one_client(dealt) == epsilon([Mechanism(2.0, 1.0, 2), Mechanism(3.0, 1.0, 2)], 1e-5)
    secret = replace(WHOLE, other_runs=[replace(spend, sample_rate=0.5) for spend in other])
    assert spent_by_one_client(secret) == epsilon([Mechanism(2.0, 1.0, 2), Mechanism(3.0, 0.5, 3)], 1e-5)


def test_two_runs_of_one_name_are_told_apart_by_their_attempts():
    """One round of 1 of 3 clients each: the same client may have been in both; two rounds of one run deal 1 turn."""
    spend = replace(WHOLE.rounds[0].spend, run="other", nominal_examples=1)
    twice = charged([spend, replace(spend, attempt=1)], clients=3)
    assert twice == [Mechanism(2.0, 1.0, 1)] * 2
    assert charged([spend, replace(spend, round=2)], clients=3) == [Mechanism(2.0, 1.0, 1)]
