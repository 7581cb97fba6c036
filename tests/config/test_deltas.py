"""A delta must be far below one over how many it protects, however few they are said to be."""

import pytest

from fedq.config import problems
from tests.quick import compose


def told(*overrides):
    return [str(p) for p in problems(compose(overrides)) if p.key.endswith("target_delta")]


@pytest.mark.parametrize(
    ("nominal", "delta", "fix"),
    [
        (10, "1e-3", None),
        (100, "1e-3", None),
        (101, "1e-3", "1e-05"),
        (5_400, "1e-5", None),
        (27_000, "1e-5", "1e-06"),
        (1_000_000, "1.1e-7", "1e-07"),
    ],
)
def test_a_delta_of_examples_is_at_most_a_tenth_of_one_over_their_public_number(nominal, delta, fix):
    words = ["privacy=example", "privacy.sample_rate=0.1", f"privacy.nominal_examples={nominal}"]
    found = told(*words, f"privacy.target_delta={delta}")
    assert len(found) == (fix is not None)
    if fix is not None:
        assert f"must be at most 1 / (10 x {nominal})" in found[0]
        assert found[0].endswith(f"Use privacy.target_delta={fix}")
        assert told(*words, f"privacy.target_delta={fix}") == []


@pytest.mark.parametrize(("clients", "delta", "fits"), [(100, "1e-3", True), (101, "1e-3", False), (2, "1e-2", False)])
def test_a_delta_of_clients_is_at_most_a_tenth_of_one_over_them(clients, delta, fits):
    assert (told("privacy=client", f"clients={clients}", f"privacy.client.target_delta={delta}") == []) is fits


@pytest.mark.parametrize("delta", ["0.1", "0.002", "1e-16"])
def test_no_public_number_allows_a_delta_out_of_bounds(delta):
    words = ["privacy=example", "clients=2", "privacy.nominal_examples=10", "privacy.sample_rate=0.5"]
    (found,) = told(*words, f"privacy.target_delta={delta}")
    assert "must be in [1e-15, 0.001]" in found


def test_the_experiments_that_come_with_fedq_keep_to_it():
    names = ("demo", "private_silo", "private_fashion", "private_devices")
    assert [told(f"experiment={name}") for name in names] == [[]] * 4
