"""How much a client counts: its own word is worth little, and nothing where the config states the weight."""

import pytest

from fedq.server.weighing import Weighing


@pytest.mark.parametrize(("claimed", "weight"), [(1, (1.0, False)), (100, (100.0, False)), (101, (100.0, True))])
def test_a_claim_counts_up_to_the_bound(claimed, weight):
    assert Weighing(by_examples=True, most=100).of("a", claimed) == weight


@pytest.mark.parametrize("claimed", [2**20 + 1, 2**63 - 1, 1e300])
def test_no_claim_goes_beyond_what_the_sums_can_take(claimed):
    assert Weighing(by_examples=True, most=float("inf")).of("a", claimed) == (2.0**20, True)


def test_a_stated_weight_is_taken_whatever_is_claimed():
    weighing = Weighing(by_examples=True, most=100, stated={"a": 50, "b": 2, "c": 500})
    assert [weighing.of(name, 10**6) for name in "abc"] == [(50.0, False), (2.0, False), (100.0, True)]


def test_where_all_count_the_same_no_claim_is_looked_at():
    assert Weighing(most=100).of("a", 10**6) == (1.0, False)
