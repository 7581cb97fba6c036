"""The verdict: true with every piece there; each piece taken away turns it false and is named."""

import math
import re
from dataclasses import fields, replace

import pytest

from fedq.privacy import ClientRound, DPEvidence, RunEvidence, is_private
from tests.privacy import ledgers

DONE = DPEvidence(
    noise_source="os",
    steps_noised=5,
    clip_norm=0.5,
    noise_multiplier=4.0,
    sample_rate=0.25,
    spend_row_id=1,
    noised_scalars=100,
    secret_bits={"batches": 256, "noise": 256},
)
SPEND = replace(ledgers.SPEND, data="digits", run="demo")
ROUND = ClientRound(client="a", round=1, done=DONE, spend=SPEND, trained_scalars=100)
WHOLE = RunEvidence(
    rounds=(
        ROUND,
        replace(ROUND, client="b"),
        replace(ROUND, round=2, done=replace(DONE, spend_row_id=2), spend=replace(SPEND, round=2)),
    ),
    epsilon=7.9,
    target_epsilon=8.0,
    accounts={"a": (7.9, 8.0), "b": (2.9, 3.0)},
    ledgers_verified=True,
    decisions=(),
    reply_fields_checked=True,
    nonpublic_reply_fields=(),
    data_fitted_on_private=False,
    activation_ranges_observed=False,
    delta=1e-5,
    nominal_examples=100,
    largest_shard=120,
    run="demo",
)


def with_last_round(**changes) -> RunEvidence:
    return replace(WHOLE, rounds=(*WHOLE.rounds[:-1], replace(WHOLE.rounds[-1], **changes)))


def with_last_done(**changes) -> RunEvidence:
    return with_last_round(done=replace(WHOLE.rounds[-1].done, **changes))


def with_last_spend(**changes) -> RunEvidence:
    return with_last_round(spend=replace(WHOLE.rounds[-1].spend, **changes))


def test_a_run_with_every_piece_is_private():
    assert is_private(WHOLE) == (True, [])


def test_no_target_needs_a_finite_epsilon_all_the_same():
    assert is_private(replace(WHOLE, target_epsilon=math.inf)) == (True, [])


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (replace(WHOLE, rounds=()), "no client round"),
        (replace(WHOLE, epsilon=8.001), "epsilon 8.001 is beyond the target 8"),
        (replace(WHOLE, epsilon=math.nan), "epsilon nan"),
        (replace(WHOLE, epsilon=math.inf, target_epsilon=math.inf), "epsilon inf"),
        (replace(WHOLE, target_epsilon=math.nan), "target nan"),
        (replace(WHOLE, accounts={"a": (7.9, 8.0), "b": (3.1, 3.0)}), "client b: epsilon 3.1 is beyond its own"),
        (replace(WHOLE, accounts={"a": (math.nan, 8.0), "b": (2.9, 3.0)}), "client a: epsilon nan"),
        (replace(WHOLE, accounts={"a": (7.9, 8.0)}), "client b: no account is on record"),
        (replace(WHOLE, ledgers_verified=False), "not verified"),
        (replace(WHOLE, decisions=("client a, 2026-01-02: never mind",)), "on a person's word: client a, 2026-01-02"),
        (replace(WHOLE, reply_fields_checked=False), "fields of the replies"),
        (
            replace(WHOLE, nonpublic_reply_fields=("loss", "num_examples")),
            "left a client.*loss, num_examples",
        ),
        (replace(WHOLE, data_fitted_on_private=True), "statistics of the private"),
        (replace(WHOLE, activation_ranges_observed=True), "activation ranges"),
        (with_last_round(done=None), "client a, round 2: no noise"),
        (with_last_round(spend=None), "client a, round 2: no spend"),
        (with_last_done(noise_source="seeded"), "others can reproduce"),
        (with_last_spend(noise_source="seeded"), "others can reproduce"),
        (with_last_done(noise_multiplier=0.0), "noise multiplier 0.0"),
        (with_last_done(noise_multiplier=math.nan), "noise multiplier nan"),
        (with_last_done(noise_multiplier=3.9), "noise multiplier 3.9, 4.0 spent"),
        (with_last_done(steps_noised=4), "4 steps noised, 5 spent"),
        (with_last_done(steps_noised=6), "6 steps noised, 5 spent"),
        (with_last_spend(steps=4), "5 steps noised, 4 spent"),
        (with_last_spend(steps=0), "5 steps noised, 0 spent"),
        (with_last_done(sample_rate=0.5), "sampling rate 0.5, 0.25 spent"),
        (with_last_done(clip_norm=1.0), "clip norm 1.0, 0.5 spent"),
        (with_last_done(noised_scalars=99), "99 values noised of 100"),
        (with_last_round(trained_scalars=0), "100 values noised of 0"),
        (with_last_spend(round=1), "the spend is for round 1"),
        (with_last_done(spend_row_id=1), "one row of a ledger stands for several"),
        (with_last_spend(unit="client"), "another kind: client"),
        (with_last_spend(adjacency="replace-one"), "another kind"),
        (with_last_spend(mechanism="discrete-gaussian"), "gaussian noise, discrete-gaussian spent"),
    ],
)
def test_each_missing_piece_is_named(evidence, reason):
    private, reasons = is_private(evidence)
    assert private is False
    assert len(reasons) >= 1
    assert any(re.search(reason, text) for text in reasons)


def test_a_run_with_no_step_at_all_is_not_private():
    nothing = with_last_round(
        done=replace(DONE, spend_row_id=2, steps_noised=0), spend=replace(SPEND, steps=0, round=2)
    )
    assert is_private(nothing) == (False, ["client a, round 2: 0 steps noised, 0 spent"])


def test_every_default_is_the_damning_one():
    assert is_private(RunEvidence())[0] is False
    for field in fields(RunEvidence):
        default = getattr(RunEvidence(), field.name)
        assert is_private(replace(WHOLE, **{field.name: default}))[0] is False, field.name


def test_all_faults_are_reported_at_once():
    evidence = replace(with_last_done(noise_source="seeded", steps_noised=4), ledgers_verified=False)
    assert len(is_private(evidence)[1]) == 3


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"epsilon": 21.0, "target_epsilon": 50.0}, "beyond 20"),
        ({"delta": 0.1, "nominal_examples": 1, "largest_shard": 0}, "delta 0.1 is beyond 0.001"),
        ({"delta": 0.0011, "nominal_examples": 1, "largest_shard": 0}, "delta 0.0011 is beyond 0.001"),
        ({"delta": math.nan}, "delta nan is beyond 0.001"),
        ({"delta": 1e-4, "nominal_examples": 1_001, "largest_shard": 0}, "one example of 1001 to leak whole"),
        ({"delta": 1e-4, "nominal_examples": 10, "largest_shard": 1_001}, "the largest true shard to leak whole"),
        ({"nominal_examples": 0}, "one example of 0 to leak whole"),
        ({"run": "another"}, "the spend is of run 'demo'"),
        ({"data_fitted_on_private": None}, "does not say"),
        ({"data_fitted_on_private": True}, "statistics of the private examples"),
    ],
)
def test_a_guarantee_that_is_empty_or_of_something_else_is_none(changed, why):
    private, reasons = is_private(replace(WHOLE, **changed))
    assert private is False
    assert any(why in reason for reason in reasons)


def test_a_delta_of_a_tenth_of_one_over_the_examples_is_small_enough():
    assert is_private(replace(WHOLE, delta=1e-4, nominal_examples=1_000, largest_shard=1_000)) == (True, [])


def test_whoever_holds_no_shard_judges_by_the_public_number():
    assert is_private(replace(WHOLE, largest_shard=0)) == (True, [])


def test_how_large_the_largest_shard_is_stays_untold():
    _, reasons = is_private(replace(WHOLE, delta=1e-4, largest_shard=4_321))
    assert not any("4321" in reason for reason in reasons)


def test_discrete_noise_that_was_spent_as_such_is_private_too():
    rounds = tuple(
        replace(
            r,
            done=replace(r.done, mechanism="discrete-gaussian"),
            spend=replace(r.spend, mechanism="discrete-gaussian"),
        )
        for r in WHOLE.rounds
    )
    assert is_private(replace(WHOLE, rounds=rounds)) == (True, [])
