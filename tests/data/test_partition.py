"""Partitioners: every example to one client, skew as the distribution says, and clear refusals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq.data import PARTITIONERS, ByColumn, Dirichlet, Iid


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def sizes(shards):
    return [len(shard) for shard in shards]


@st.composite
def labelled_clients(draw):
    num_clients = draw(st.integers(1, 12))
    targets = np.array(draw(st.lists(st.integers(0, 4), min_size=num_clients, max_size=80)))
    return targets, num_clients, draw(st.integers(0, 2**32))


def check_partition(shards, num_examples, num_clients):
    assert len(shards) == num_clients
    assert sorted(np.concatenate(shards)) == list(range(num_examples))
    assert all(len(shard) and (np.diff(shard) > 0).all() for shard in shards)


@given(labelled_clients())
def test_iid_deals_each_example_once_in_equal_sizes(case):
    targets, num_clients, seed = case
    shards = Iid()(targets, None, clients=num_clients, rng=rng(seed))
    check_partition(shards, len(targets), num_clients)
    assert max(sizes(shards)) - min(sizes(shards)) <= 1


@settings(deadline=None)
@given(labelled_clients(), st.sampled_from([1e-3, 0.1, 0.5, 10, 1e6]), st.data())
def test_dirichlet_deals_each_example_once_and_never_below_min_size(case, alpha, data):
    targets, num_clients, seed = case
    min_size = data.draw(st.integers(1, len(targets) // num_clients))
    shards = Dirichlet(alpha=alpha, min_size=min_size)(targets, None, clients=num_clients, rng=rng(seed))
    check_partition(shards, len(targets), num_clients)
    assert min(sizes(shards)) >= min_size


@given(st.lists(st.sampled_from(["ann", "bob", "cy"]), min_size=1, max_size=30))
def test_by_column_deals_each_example_to_its_key(groups):
    keys = sorted(set(groups))
    shards = ByColumn()(np.zeros(len(groups)), np.array(groups), clients=len(keys), rng=rng())
    check_partition(shards, len(groups), len(keys))
    assert [{groups[i] for i in shard} for shard in shards] == [{key} for key in keys]


def test_integer_keys_are_ordered_as_numbers():
    shards = ByColumn()(np.zeros(4), np.array([10, 9, 10, 9]), clients=2, rng=rng())
    assert [shard.tolist() for shard in shards] == [[1, 3], [0, 2]]


@pytest.mark.parametrize("partitioner", [Iid(), Dirichlet(min_size=1)])
def test_generator_alone_decides_the_partition(partitioner):
    targets = np.arange(200) % 10

    def shards(seed):
        return [shard.tolist() for shard in partitioner(targets, None, clients=4, rng=rng(seed))]

    assert shards(1) == shards(1)
    assert shards(1) != shards(2)


def test_dirichlet_shares_have_the_mean_and_variance_of_their_distribution():
    # With 2 clients a class's share is Beta(a, a): mean 1/2, variance 1/(4(2a + 1)), for a = 1/2 that is 1/8
    # and kurtosis 3/2. 2,000 classes are 2,000 draws; of 50 examples each, so rounding adds 1/(12 * 50^2).
    num_classes, class_size, variance = 2_000, 50, 1 / 8
    targets = np.repeat(np.arange(num_classes), class_size)
    shard, _ = Dirichlet(alpha=0.5)(targets, None, clients=2, rng=rng())
    shares = np.bincount(targets[shard], minlength=num_classes) / class_size
    assert abs(shares.mean() - 1 / 2) <= 6 * math.sqrt(variance / num_classes)
    assert abs(shares.var() - variance) <= 6 * variance * math.sqrt((1.5 - 1) / num_classes) + 1 / (12 * 50**2)


def test_huge_alpha_gives_every_client_its_share_of_every_class():
    # A share of 1/10 has deviation sqrt(0.09 / (10 * 1e6 + 1)): 0.095 of 1,000 examples. Six of it, and 1
    # for rounding, are below 2.
    targets = np.arange(10_000) % 10
    for shard in Dirichlet(alpha=1e6)(targets, None, clients=10, rng=rng()):
        assert np.abs(np.bincount(targets[shard], minlength=10) - 100).max() <= 2


def test_tiny_alpha_gives_each_class_to_one_client():
    # A class is split (no client has 99 %) with probability of about clients * alpha * log(100) = 2 %:
    # 1 of 50 classes, and more than 8 with probability below 1e-5.
    targets = np.repeat(np.arange(50), 100)
    shards = Dirichlet(alpha=1e-3, min_size=1)(targets, None, clients=4, rng=rng())
    largest = np.max([np.bincount(targets[shard], minlength=50) for shard in shards], axis=0)
    assert (largest < 99).sum() <= 8


def test_partition_that_no_draw_yields_is_repaired_from_the_largest_client():
    # 2 classes at alpha = 0.001 reach 2 of 50 clients, so each of the others is repaired to exactly min_size.
    targets = np.arange(1_000) % 2
    shards = Dirichlet(alpha=1e-3, min_size=10)(targets, None, clients=50, rng=rng())
    assert sorted(sizes(shards))[:48] == [10] * 48
    assert sum(len(set(targets[shard])) == 1 for shard in shards) >= 45  # still skewed: hardly any mixed client


def test_min_size_that_uses_up_all_examples_makes_equal_clients():
    targets = np.arange(100) % 3
    assert sizes(Dirichlet(alpha=0.1, min_size=20)(targets, None, clients=5, rng=rng())) == [20] * 5


@pytest.mark.parametrize("partitioner", [Iid(), Dirichlet()])
@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (0, "clients=0: must be at least 1"),
        (99_999, "clients=99999: more clients than the 1437 training examples; use clients<=1437"),
    ],
)
def test_impossible_number_of_clients_is_refused(partitioner, clients, message):
    with pytest.raises(ValueError, match=message):
        partitioner(np.zeros(1437, int), None, clients=clients, rng=rng())


def test_min_size_beyond_the_data_is_refused_with_both_mends():
    with pytest.raises(ValueError, match=r"min_size=10: 200 clients need 2000 .*min_size<=7 or clients<=143$"):
        Dirichlet()(np.zeros(1437, int), None, clients=200, rng=rng())


def test_mends_for_min_size_are_sharp():
    targets = np.zeros(1437, int)
    assert min(sizes(Dirichlet(min_size=7)(targets, None, clients=200, rng=rng()))) >= 7
    assert min(sizes(Dirichlet(min_size=10)(targets, None, clients=143, rng=rng()))) >= 10
    with pytest.raises(ValueError, match="200 clients need 1600"):
        Dirichlet(min_size=8)(targets, None, clients=200, rng=rng())


@pytest.mark.parametrize("targets", [np.zeros((20, 1), np.float32), np.zeros((20, 3), np.float32)])
def test_dirichlet_has_no_meaning_for_float_targets(targets):
    with pytest.raises(ValueError, match=r"partition=dirichlet skews classes.*use partition=iid"):
        Dirichlet()(targets, None, clients=2, rng=rng())


@pytest.mark.parametrize("alpha", [0, -1, 1e-4, 1e7, math.nan, math.inf])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ValueError, match=r"partition\.alpha=.*must be 0\.001\.\.1e6"):
        Dirichlet(alpha=alpha)


def test_empty_clients_cannot_be_asked_for():
    with pytest.raises(ValueError, match=r"partition\.min_size=0: must be at least 1"):
        Dirichlet(min_size=0)


def test_by_column_without_keys_says_where_to_get_them():
    with pytest.raises(ValueError, match=r"has no client keys.*set data\.client=COLUMN"):
        ByColumn()(np.zeros(3), None, clients=3, rng=rng())


@pytest.mark.parametrize("clients", [2, 4])
def test_by_column_takes_as_many_clients_as_keys(clients):
    with pytest.raises(ValueError, match=rf"clients={clients}: .* each of the 3 keys .*use clients=3"):
        ByColumn()(np.zeros(3), np.array(["a", "b", "c"]), clients=clients, rng=rng())


def test_every_partitioner_can_be_chosen_by_name():
    assert {"iid": Iid, "dirichlet": Dirichlet, "by_column": ByColumn} == PARTITIONERS
