"""Median and trimmed mean: exact, the same in any order, and not to be moved by a few."""

from itertools import permutations

import numpy as np
import pytest

from fedq.server import robust
from fedq.server.robust import Median, TrimmedMean, aggregated

ROWS = np.float32([[1, -1, 0.0], [2, 5, -0.0], [3, 6, 0.0], [1e30, -1e30, 7], [4, 7, -7]])


def of(rows, aggregate):
    return aggregated(iter(rows), aggregate, count=len(rows), size=rows.shape[1])


def test_the_median_is_the_middle_value_of_each_coordinate():
    assert of(ROWS, Median()).tolist() == [3.0, 5.0, 0.0]


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    assert of(ROWS[:4], Median()).tolist() == [2.5, 2.0, 0.0]


def test_the_trimmed_mean_leaves_the_ends_out():
    assert of(ROWS, TrimmedMean(0.2)).tolist() == [3.0, np.float32(10 / 3), 0.0]


@pytest.mark.parametrize(
    ("trim", "count", "left_out"), [(0.1, 10, 1), (0.1, 9, 1), (0.2, 10, 2), (0.01, 3, 1), (0.4, 2, 0)]
)
def test_the_share_is_rounded_up_so_that_it_covers_every_liar(trim, count, left_out):
    rows = np.arange(count, dtype=np.float32)[:, None] ** 2
    kept = np.arange(left_out, count - left_out) ** 2
    assert of(rows, TrimmedMean(trim)).tolist() == [np.float32(kept.mean())]


@pytest.mark.parametrize("aggregate", [Median(), TrimmedMean(0.2)])
def test_the_order_of_the_updates_changes_no_bit(aggregate):
    rows = np.random.default_rng(0).normal(size=(5, 50)).astype(np.float32)
    rows[:, 0] = [0.0, -0.0, -0.0, 0.0, -0.0]
    assert len({of(rows[list(order)], aggregate).tobytes() for order in permutations(range(5))}) == 1


@pytest.mark.parametrize("aggregate", [Median(), TrimmedMean(0.2)])
def test_neither_blocks_nor_a_file_change_a_bit(aggregate, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(5, 1003)).astype(np.float32)
    whole = of(rows, aggregate)
    monkeypatch.setattr(robust, "_IN_MEMORY", 0)
    monkeypatch.setattr(robust, "_BLOCK", 64)
    assert of(rows, aggregate).tobytes() == whole.tobytes()


def test_updates_are_taken_one_at_a_time():
    alive = []

    def updates():
        for number in range(4):
            alive.append(number)
            yield np.full(3, number, np.float32)

    assert aggregated(updates(), Median(), count=4, size=3).tolist() == [1.5] * 3
    assert alive == [0, 1, 2, 3]


@pytest.mark.hostile
@pytest.mark.parametrize("aggregate", [Median(), TrimmedMean(0.4)])
@pytest.mark.parametrize("lie", [3e38, -3e38, 0.0])
def test_four_of_ten_cannot_leave_the_range_of_the_honest(aggregate, lie):
    honest = np.random.default_rng(1).normal(size=(6, 40)).astype(np.float32)
    moved = of(np.concatenate([honest, np.full((4, 40), lie, np.float32)]), aggregate)
    assert (moved >= honest.min(axis=0)).all()
    assert (moved <= honest.max(axis=0)).all()
