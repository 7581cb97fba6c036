"""Canaries of either kind, on the right mechanism and beside closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedq.audit.black_box import black_box_run
from fedq.audit.bounds import Guesses
from fedq.audit.canaries import canary_subject, repeated_runs, white_box_run
from fedq.audit.sources import Replayed
from fedq.audit.verdict import claimed, guess_by_evidence, guess_by_order, judged, refuted_epsilon

pytestmark = pytest.mark.integration


def exactly(subject, mu, *, steps=2):
    """The subject with full batches, whose curve is exactly `mu` over its steps."""
    plan = replace(subject.plan, sample_rate=1.0, steps=steps, noise_multiplier=math.sqrt(steps) / mu)
    return replace(subject, plan=plan)


def test_each_canary_adds_one_clip_norm_along_a_direction_of_its_own(make_subject):
    own, examples = canary_subject(exactly(make_subject(), 1.0, steps=1), 200)
    coins = [np.ones(1, bool)]
    without = own.answer(examples[:0], Replayed(0, [np.ones(0, bool)])).gradients[0]
    moves = np.array(
        [own.answer(examples[[i]], Replayed(0, coins)).gradients[0] - without for i in (0, 1, 63, 64, 199)]
    )
    moves *= own.plan.divisor / own.plan.clip_norm
    # On the grid of noise=discrete a share is 2^-12 shorter than the clip norm.
    assert moves @ moves.T == pytest.approx(np.eye(5), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("mu", "epsilon"), [(0.268, 1.0), (0.719, 3.0), (1.666, 8.0)])
def test_the_bound_is_below_the_claim_at_one_three_and_eight(make_subject, mu, epsilon):
    subject = exactly(make_subject(), mu)
    seen = white_box_run(subject, canaries=4000, rounds=1, rng=np.random.default_rng(1))
    check, bounds = judged(seen, subject.plan, rounds=1, box="white-box")
    assert bounds.claimed_epsilon == pytest.approx(epsilon, rel=2e-3)
    assert bounds.one_run <= bounds.claimed_epsilon
    assert bounds.one_run_curve <= bounds.claimed_epsilon
    assert check.p_value > 0.01


@pytest.mark.slow
def test_one_run_of_the_client_reaches_half_of_epsilon_eight(make_subject):
    subject = exactly(make_subject(), 1.666)
    seen = white_box_run(subject, canaries=16_384, rounds=1, rng=np.random.default_rng(1))
    assert 4 <= refuted_epsilon(seen, subject.plan, 1) <= 8


def test_rounds_of_one_client_compose(make_subject):
    plan = make_subject().plan
    assert claimed(plan, 7).steps == 7 * plan.steps


@pytest.mark.slow
def test_independent_runs_reach_half_of_epsilon_eight(make_subject):
    subject = exactly(make_subject(), 1.666, steps=1)
    errors = repeated_runs(subject, runs=600, rounds=1, rng=np.random.default_rng(1))
    assert errors.out + errors.included == 600
    assert 4 <= refuted_epsilon(errors, subject.plan, 1) <= 8


def test_guesses_are_the_highest_and_the_lowest_scores():
    included = np.arange(2000) >= 1000
    assert guess_by_order(np.arange(2000.0), included).parts == (Guesses(2000, 200, 200), Guesses(2000, 2000, 2000))
    assert [part.correct for part in guess_by_order(-np.arange(2000.0), included).parts] == [0, 0]


def test_the_surest_guesses_may_all_be_for_members():
    """Half of the members were drawn, which shows; of all others nothing is known but that they were not."""
    included = np.arange(2000) < 1000
    evidence = np.where(np.arange(2000) < 500, 5.0, -0.4)
    assert guess_by_evidence(evidence, included).parts == (Guesses(2000, 200, 200), Guesses(2000, 2000, 1500))


def test_a_model_that_has_learnt_its_canaries_by_heart_tells_of_them(make_subject, examples):
    subject = make_subject()
    loud = replace(subject.plan, noise_multiplier=0.01, sample_rate=1.0, steps=20, nominal_examples=60, clip_norm=5.0)
    subject = replace(subject, plan=loud)
    seen = black_box_run(
        subject, examples[:20], canaries=100, rounds=15, rng=np.random.default_rng(0), tell=lambda round: None
    )
    assert seen.parts[0].correct > 70


def test_a_model_under_much_noise_tells_less_than_it_may(make_subject, examples):
    subject = make_subject()
    subject = replace(subject, plan=replace(subject.plan, noise_multiplier=10.0))
    seen = black_box_run(
        subject, examples[:20], canaries=200, rounds=2, rng=np.random.default_rng(0), tell=lambda round: None
    )
    check, bounds = judged(seen, subject.plan, rounds=2, box="black-box")
    assert bounds.one_run <= bounds.claimed_epsilon
    assert bounds.one_run_curve <= bounds.claimed_epsilon
    assert check.name == "black-box canaries"
