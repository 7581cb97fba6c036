"""The digits loader: scikit-learn's images, all of them, once each."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedq.data import digits


@pytest.fixture(scope="module")
def data():
    return digits()


def test_splits_hold_every_image_with_its_label_once(data):
    splits = (data.train, data.validation, data.test)
    rows = [np.column_stack([split.inputs.reshape(len(split), 64) * 16, split.targets]) for split in splits]
    published = load_digits()
    expected = np.column_stack([published.data, published.target])
    np.testing.assert_array_equal(np.sort(np.concatenate(rows), axis=0), np.sort(expected, axis=0))
    assert {tuple(row) for row in np.concatenate(rows)} == {tuple(row) for row in expected}


def test_images_are_grey_levels_from_0_to_1(data):
    assert data.input_shape == (1, 8, 8)
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0.0, 1.0)


def test_sizes_follow_the_fractions(data):
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1258, 180, 359]
    assert (data.num_outputs, data.name, data.groups) == (10, "digits", None)


def test_scale_is_not_fitted_to_the_data(data):
    assert data.fitted_on_private_data is False


def test_parts_not_asked_for_are_absent():
    data = digits(validation_fraction=0, test_fraction=0)
    assert (len(data.train), data.validation, data.test) == (1797, None, None)


def test_split_is_fixed_unless_its_seed_is_changed(data):
    np.testing.assert_array_equal(data.train.inputs, digits().train.inputs)
    assert not np.array_equal(data.train.inputs, digits(seed=1).train.inputs)
