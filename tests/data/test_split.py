"""split_indices: disjoint parts of the asked sizes, keyed by the seed alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq.data import split_indices


@given(st.integers(10, 200), st.floats(0, 0.4), st.floats(0, 0.4), st.integers(0, 2**63))
def test_parts_are_disjoint_and_cover_all(num_examples, validation_fraction, test_fraction, seed):
    parts = split_indices(num_examples, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed)
    assert sorted(np.concatenate(parts)) == list(range(num_examples))


def test_sizes_are_rounded_fractions_of_all():
    parts = split_indices(1797, validation_fraction=0.1, test_fraction=0.2, seed=0)
    assert [len(part) for part in parts] == [1258, 180, 359]


def test_part_that_was_asked_for_is_never_empty():
    parts = split_indices(4, validation_fraction=0.01, test_fraction=0.01, seed=0)
    assert [len(part) for part in parts] == [2, 1, 1]


def test_fraction_zero_holds_nothing_out():
    train, validation, test = split_indices(5, validation_fraction=0, test_fraction=0, seed=3)
    assert sorted(train) == [0, 1, 2, 3, 4]
    assert len(validation) == len(test) == 0


def test_seed_decides_the_split():
    def training_part(seed):
        return split_indices(100, validation_fraction=0.1, test_fraction=0.2, seed=seed)[0].tolist()

    assert training_part(1) == training_part(1)
    assert sorted(training_part(1)) != sorted(training_part(2))


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("key", ["validation_fraction", "test_fraction"])
def test_fraction_out_of_range_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"data\.{key}={value}: must be at least 0 and below 1"):
        split_indices(10, **({"validation_fraction": 0.1, "test_fraction": 0.1, "seed": 0} | {key: value}))


def test_fractions_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match=r"validation_fraction=0.5 and data.test_fraction=0.5 leave no training"):
        split_indices(10, validation_fraction=0.5, test_fraction=0.5, seed=0)


def test_too_few_examples_to_split_are_refused():
    with pytest.raises(ValueError, match="2 examples split into 1 for validation and 1 for test leave none"):
        split_indices(2, validation_fraction=0.1, test_fraction=0.1, seed=0)
