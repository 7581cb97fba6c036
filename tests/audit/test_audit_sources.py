"""What an auditor's source gives and what it notes."""

import numpy as np
import pytest

from fedq.audit.sources import Noted, Replayed
from fedq.privacy import SeededRandom


def test_a_replayed_source_repeats_its_numbers_and_gives_the_coins():
    coins = np.array([[True, False], [False, False]])
    one, other = Replayed(3, coins), Replayed(3, coins)
    for source in (one, other):
        assert source.bernoulli(0.5, 2).tolist() == [True, False]
    assert np.array_equal(one.normal(5), other.normal(5))
    assert one.bernoulli(0.5, 2).tolist() == [False, False]
    assert one.draws == [("bernoulli", 0.5), ("normal", 5), ("bernoulli", 0.5)]


def test_coins_for_another_number_of_things_are_thrown():
    assert len(Replayed(3, np.ones((1, 2), bool)).bernoulli(0.5, 7)) == 7


def test_draws_of_a_kind_that_is_not_known_here_are_noted_too():
    class Wider(SeededRandom):
        def integers(self, count, *, below):
            return np.zeros(count, int)

    source = Noted(Wider(0))
    source.integers(3, below=7)
    assert source.draws == [("integers", ((3,), (("below", 7),)))]
    assert source.source == "seeded"


def test_a_distribution_that_the_source_lacks_is_missing():
    with pytest.raises(AttributeError, match="poisson"):
        Noted(SeededRandom(0)).poisson(3)
