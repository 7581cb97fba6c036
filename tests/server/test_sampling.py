"""Shuffle-and-deal: who takes part, and how often at most."""

import random
from collections import Counter
from itertools import product

import pytest

from fedq.server import CyclicSampler

SIZES = [(n, m) for n in (1, 2, 3, 5, 7, 10, 12) for m in range(1, n + 1)]


def cohorts(clients, size, rounds, *, seed=0):
    sampler = CyclicSampler([str(i) for i in range(clients)], seed=seed)
    return [sampler.cohort(round, size) for round in range(1, rounds + 1)]


@pytest.mark.parametrize(("clients", "size"), SIZES)
def test_nobody_takes_part_more_often_than_the_cap_of_any_run_length(clients, size):
    taken = Counter()
    for round, cohort in enumerate(cohorts(clients, size, 60), start=1):
        taken.update(cohort)
        assert max(taken.values()) <= -(-round * size // clients)  # ceil(R m / N)


@pytest.mark.parametrize(("clients", "size"), SIZES)
def test_nobody_takes_part_less_often_than_the_floor(clients, size):
    taken = Counter({str(i): 0 for i in range(clients)})
    for round, cohort in enumerate(cohorts(clients, size, 60), start=1):
        taken.update(cohort)
        assert min(taken.values()) >= round * size // clients


@pytest.mark.parametrize(("clients", "size"), SIZES)
def test_no_client_is_twice_in_a_cohort(clients, size):
    for cohort in cohorts(clients, size, 60):
        assert len(cohort) == len(set(cohort)) == size


def test_ten_of_a_hundred_for_a_hundred_rounds_is_ten_times_each():
    assert set(Counter(name for cohort in cohorts(100, 10, 100) for name in cohort).values()) == {10}


def test_the_order_of_the_names_does_not_matter():
    names = [str(i) for i in range(11)] + ["north", "south"]
    shuffled = random.Random(1).sample(names, len(names))
    first, second = CyclicSampler(names, seed=4), CyclicSampler(shuffled, seed=4)
    assert [first.cohort(r, 4) for r in range(1, 20)] == [second.cohort(r, 4) for r in range(1, 20)]


def test_a_round_can_be_asked_for_again():
    """A resumed run starts in the middle."""
    assert (
        CyclicSampler("abcdefg", seed=2).cohort(9, 3)
        == [CyclicSampler("abcdefg", seed=2).cohort(r, 3) for r in range(1, 10)][-1]
    )


def test_seeds_deal_differently():
    assert cohorts(20, 5, 3, seed=1) != cohorts(20, 5, 3, seed=2)


def test_every_pair_of_clients_meets():
    """Not a fixed partition into groups: over many decks any two clients share a round."""
    met = {pair for cohort in cohorts(6, 2, 300) for pair in product(cohort, cohort)}
    assert len(met) == 36


def test_a_cohort_is_in_the_order_of_the_numbers_in_the_names():
    assert CyclicSampler(["10", "9", "x", "2"], seed=0).cohort(1, 4) == ["2", "9", "10", "x"]


@pytest.mark.parametrize("size", [0, 4, -1])
def test_a_cohort_larger_than_the_roster_or_empty_is_refused(size):
    with pytest.raises(ValueError, match=rf"cohort of {size} among 3 clients: must be 1 to all of them"):
        CyclicSampler("abc", seed=0).cohort(1, size)
