"""The longest update: a given norm, or a multiple of a median that a minority cannot move."""

import numpy as np
import pytest

from fedq.server.bounding import MedianBound, MedianPull, NormBound, lower_median, shortened


def test_an_update_within_the_limit_stays_as_it_is():
    update = np.float32([3, 4])
    assert shortened(update, reach=5.0, limit=5.0) is update


def test_a_longer_update_keeps_its_direction_and_loses_its_length():
    assert shortened(np.float32([30, -40]), reach=50.0, limit=5.0).tolist() == [3.0, -4.0]


def test_the_longest_float32_vector_is_shortened_without_an_overflow():
    update = np.full(4, 3e38, np.float32)
    assert shortened(update, reach=6e38, limit=2.0).tolist() == [1.0] * 4


@pytest.mark.parametrize(("values", "median"), [([5], 5), ([1, 9], 1), ([9, 1, 5], 5), ([4, 1, 3, 2], 2)])
def test_the_lower_median_is_one_of_the_values(values, median):
    assert lower_median(values) == median


def test_a_given_norm_is_the_limit_of_the_norm_whatever_the_weight():
    bound = NormBound(3.0)
    bound.note([100.0] * 9)
    assert (bound.limit(), bound.reach(2.5, 1000.0, 7)) == (3.0, 2.5)


def test_the_reach_is_a_norm_or_what_an_update_adds_to_the_weighted_sum():
    assert MedianPull().reach(2.5, 40.0, 1) == 100.0
    assert MedianBound().reach(2.5, 40.0, 1) == 2.5


def test_before_any_update_the_limit_is_that_of_the_rounds_own():
    bound = MedianBound(2.0)
    assert bound.limit() is None
    assert bound.limit_among([3.0, 1e9, 1.0]) == 6.0


def test_the_limit_follows_the_updates_up_as_well_as_down():
    bound = MedianBound(2.0)
    limits = []
    for length in (1.0, 4.0, 4.0, 4.0, 0.5, 0.5, 0.5, 0.5):
        bound.note([length] * 30)
        limits.append(bound.limit())
    assert limits == [2.0, 2.0, 8.0, 8.0, 8.0, 8.0, 1.0, 1.0]


@pytest.mark.hostile
@pytest.mark.parametrize("lie", [0.0, 1e-9, 1e9])
def test_four_of_ten_cannot_move_the_limit_beyond_what_honest_clients_sent(lie):
    bound = MedianBound(2.0)
    for _ in range(20):
        bound.note([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, *[lie] * 4])
    assert 2.0 <= bound.limit() <= 3.0


@pytest.mark.hostile
def test_a_limit_cannot_be_ratcheted_up_by_updates_that_were_shortened_before():
    bound = MedianBound(2.0)
    bound.note([1.0] * 6 + [1e6] * 4)
    for _ in range(50):
        bound.note([1.0] * 6 + [bound.limit()] * 4)
    assert bound.limit() == 2.0


def test_small_cohorts_are_remembered_for_longer():
    bound = MedianBound(2.0)
    for round in range(1, 101):
        bound.note([float(round)])
    assert bound.limit() == 2.0 * 85  # the lower median of 71 to 100


def test_in_a_unit_that_follows_the_learning_rate_the_limit_does_too():
    bound = MedianBound(2.0, unit=lambda round: 1.0 / round)
    assert bound.reach(norm=3.0, weight=1.0, round=1) == bound.reach(norm=0.75, weight=1.0, round=4) == 3.0


def test_a_public_length_bounds_the_first_round_and_every_other():
    bound = MedianBound(2.0, most=1.0)
    assert (bound.limit(), bound.limit_among([0.9, 0.9, 0.9])) == (1.0, 1.0)
    bound.note([0.1, 0.1, 0.9])
    assert bound.limit() == 0.2
