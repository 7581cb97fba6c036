"""as_dataset: every shape of loader result that is accepted, and the message for those that are not."""

import numpy as np
import pytest
import torch

from fedq.data import Dataset, Examples, as_dataset

X = np.arange(8.0).reshape(4, 2)
Y = np.array([0, 2, 1, 0])


def test_pair_of_arrays_is_a_training_set_without_test():
    data = as_dataset((X, Y), "mine")
    np.testing.assert_array_equal(data.train.inputs, X)
    np.testing.assert_array_equal(data.train.targets, Y)
    assert (data.test, data.validation, data.groups) == (None, None, None)
    assert (data.name, data.num_outputs) == ("mine", 3)


@pytest.mark.parametrize("container", [tuple, list])
def test_pair_of_pairs_is_training_and_test(container):
    data = as_dataset(container([container([X, Y]), container([X[:1], Y[:1]])]), "mine")
    assert (len(data.train), len(data.test)) == (4, 1)
    assert data.validation is None


def test_tensors_give_the_same_dataset_as_arrays():
    data = as_dataset(((torch.tensor(X), torch.tensor(Y)), (torch.tensor(X), torch.tensor(Y))), "mine")
    np.testing.assert_array_equal(data.test.inputs, X)
    np.testing.assert_array_equal(data.test.targets, Y)


def test_class_that_only_the_test_set_shows_has_an_output():
    assert as_dataset(((X, Y), (X[:1], np.array([6]))), "mine").num_outputs == 7


def test_float_targets_have_an_output_a_column():
    assert as_dataset((X, np.zeros((4, 5))), "mine").num_outputs == 5


def test_dataset_is_handed_on_as_it_is():
    data = Dataset(Examples(X, Y), validation=None, test=None, num_outputs=9, name="theirs")
    assert as_dataset(data, "mine") is data


def test_plain_arrays_do_not_say_how_they_were_scaled():
    assert as_dataset((X, Y), "mine").fitted_on_private_data is None


@pytest.mark.parametrize(
    ("returned", "described"),
    [
        (None, "returned a NoneType"),
        (X, "returned a ndarray"),
        (42, "returned an int"),
        ({"x": X, "y": Y}, "returned a dict"),
        ((X, Y, X, Y, X), r"returned a tuple of 5 \(ndarray, ndarray, ndarray, ndarray, \.\.\.\)"),
        (((X, Y), X), r"returned a tuple of 2 \(tuple, ndarray\)"),
        (((X, Y), (X, Y, Y)), r"returned a tuple of 2 \(tuple, tuple\)"),
        ([[1.0, 2.0], [3.0, 4.0]], r"mine: train: is a list of 2 \(float, float\), not arrays"),
        (("x", "y"), r"mine: train: is a tuple of 2 \(str, str\), not arrays"),
    ],
)
def test_anything_else_is_described_with_what_is_accepted(returned, described):
    with pytest.raises(
        ValueError,
        match=rf"mine.*{described.removeprefix('mine')}.*fedq\.data\.Dataset, \(x_train, y_train\)",
    ):
        as_dataset(returned, "mine")


def test_bad_value_is_named_with_its_split():
    bad = X.copy()
    bad[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"mine: test inputs\[3, 0\]=nan"):
        as_dataset(((X, Y), (bad, Y)), "mine")


def test_single_class_is_nothing_to_learn():
    with pytest.raises(ValueError, match="mine: num_outputs=1: must be the number of classes"):
        as_dataset((X, np.zeros(4, int)), "mine")


def test_empty_training_set_is_refused():
    with pytest.raises(ValueError, match="mine: there are no training examples"):
        as_dataset((X[:0], Y[:0]), "mine")
