"""Noisy counts: exact noise, paid before it is drawn, and no more error than Laplace noise must have."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fedq.privacy import Declined, PureDP, SecureRandom, SeededRandom, noisy_counts, standard_error
from fedq.privacy.counts import _exp_coin, discrete_laplace


@pytest.fixture
def evaluating(plan):
    return replace(plan, evaluation_epsilon=0.1)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 2.5])
def test_the_noise_is_the_discrete_laplace_distribution(epsilon):
    """Chi-square of the middle values against (1 - r) / (1 + r) r^|k|, r = exp(-epsilon)."""
    random, draws = SeededRandom(1), 4000
    seen = Counter(discrete_laplace(epsilon, random) for _ in range(draws))
    ratio = math.exp(-epsilon)
    chance = {k: (1 - ratio) / (1 + ratio) * ratio ** abs(k) for k in range(-40, 41)}
    cells = [k for k in chance if draws * chance[k] >= 10]
    observed = np.array([seen[k] for k in cells] + [draws - sum(seen[k] for k in cells)])
    expected = np.array([draws * chance[k] for k in cells] + [draws * (1 - sum(chance[k] for k in cells))])
    statistic, freedom = float(((observed - expected) ** 2 / expected).sum()), len(cells)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)  # 5 sigma of a chi-square of so many degrees


def test_a_coin_of_odds_exp_minus_gamma_is_fair():
    from fractions import Fraction

    random, tosses = SeededRandom(2), 6000
    heads = sum(_exp_coin(Fraction(1, 3), random) for _ in range(tosses))
    chance = math.exp(-1 / 3)
    assert abs(heads - tosses * chance) < 5 * math.sqrt(tosses * chance * (1 - chance))


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 2**63 + 1, 2**70])
def test_whole_numbers_below_a_bound_are_drawn_whatever_its_size(bound):
    random = SeededRandom(3)
    drawn = [random.below(bound) for _ in range(300)]
    assert min(drawn) >= 0
    assert max(drawn) < bound
    assert bound == 1 or abs(sum(drawn) / 300 / bound - 0.5 * (bound - 1) / bound) < 5 / math.sqrt(12 * 300)
    with pytest.raises(ValueError, match="bound=0"):
        random.below(0)


def test_the_spend_is_in_the_ledger_and_costs_its_epsilon(evaluating, ledger, context):
    _, _, evidence = noisy_counts(90, 10, evaluating, random=SecureRandom(), ledger=ledger, context=context)
    (row,) = ledger.rows()
    assert (evidence.spend_row_id, evidence.mechanism, evidence.noised_scalars) == (1, "discrete-laplace", 2)
    assert row.spend.as_mechanism() == evaluating.evaluation
    assert isinstance(row.spend.as_mechanism(), PureDP)
    assert 0.1 <= ledger.epsilon(1e-5) < 0.1 * (1 + 1e-12)


def test_counts_beyond_the_budget_are_declined_and_nothing_is_spent(evaluating, ledger, context):
    poor = replace(evaluating, target_epsilon=0.05)
    with pytest.raises(Declined, match=r"epsilon would be 0\.1 of 0\.05"):
        noisy_counts(90, 10, poor, random=SecureRandom(), ledger=ledger, context=context)
    assert ledger.rows() == []


def test_a_plan_without_an_evaluation_has_no_counts(plan, ledger, context):
    with pytest.raises(ValueError, match="use evaluate=dp"):
        noisy_counts(90, 10, plan, random=SecureRandom(), ledger=ledger, context=context)


def test_ten_clients_of_a_thousand_examples_at_epsilon_a_tenth_are_off_by_half_a_point_at_most(
    evaluating, ledger, context
):
    """The spread over 300 evaluations is what `standard_error` says, and that is below 0.5 points."""
    random = SeededRandom(4)
    right, wrong = np.full((300, 10), 880), np.full((300, 10), 120)
    noise = np.array([discrete_laplace(0.1, random) for _ in range(6000)]).reshape(2, 300, 10)
    summed = (right + noise[0]).sum(1), (wrong + noise[1]).sum(1)
    accuracy = summed[0] / (summed[0] + summed[1])
    said = standard_error(8800, 1200, 10, 0.1)
    assert said < 0.005
    assert abs(accuracy.mean() - 0.88) < 5 * said / math.sqrt(300)
    assert abs(accuracy.std() / said - 1) < 5 / math.sqrt(2 * 300)


def test_where_noise_is_all_there_is_no_accuracy_is_claimed():
    assert standard_error(-3, 2, 10, 0.1) == math.inf


@pytest.mark.parametrize(
    ("right", "wrong", "clients", "epsilon", "error"),
    [
        (80, 20, 10, 0.1, math.sqrt(20 * (0.04 + 0.64)) / 10),
        (0, 100, 1, 1.0, math.sqrt(2) / 100),
        (-5, 105, 1, 1.0, math.sqrt(2) / 100),  # noise may make a count negative
        (0, 0, 10, 0.1, math.inf),
        (-3, 2, 10, 0.1, math.inf),
    ],
)
def test_the_standard_error_is_that_of_a_quotient_of_two_noisy_counts(right, wrong, clients, epsilon, error):
    assert standard_error(right, wrong, clients, epsilon) == pytest.approx(error)
