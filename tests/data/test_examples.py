"""Examples and Dataset: what is converted, what is refused, and what a refusal says."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from fedq.data import Dataset, Examples


@pytest.fixture
def three_examples():
    return Examples(np.arange(6.0).reshape(3, 2), np.array([0, 1, 1]))


def dataset(train, **options):
    return Dataset(train, **({"validation": None, "test": None, "num_outputs": 2} | options))


@pytest.mark.parametrize(
    "inputs",
    [
        [[0, 1], [2, 3]],
        np.array([[0, 1], [2, 3]], np.uint8),
        np.array([[0, 1], [2, 3]], np.float64, order="F"),
        torch.tensor([[0, 1], [2, 3]], dtype=torch.bfloat16),
        torch.tensor([[0.0, 1.0], [2.0, 3.0]], requires_grad=True),
    ],
)
def test_inputs_of_any_number_type_become_contiguous_float32(inputs):
    converted = Examples(inputs, [0, 1]).inputs
    assert converted.dtype == np.float32
    assert converted.flags.c_contiguous
    np.testing.assert_array_equal(converted, [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    "targets",
    [[0, 1], np.array([0, 1], np.uint8), np.array([False, True]), torch.tensor([0, 1]), np.array([[0], [1]])],
)
def test_whole_targets_become_int64_classes(targets):
    converted = Examples(np.zeros((2, 1)), targets).targets
    assert converted.dtype == np.int64
    np.testing.assert_array_equal(converted, [0, 1])


def test_one_column_of_float_targets_becomes_a_matrix():
    targets = Examples(np.zeros((2, 1)), np.array([0.5, 2.0])).targets
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, [[0.5], [2.0]])


def test_boolean_matrix_of_targets_is_multi_label():
    targets = Examples(np.zeros((2, 1)), np.array([[True, False], [True, True]])).targets
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, [[1, 0], [1, 1]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_first_value_that_float32_cannot_hold_is_named(bad):
    inputs = np.zeros((4, 3))
    inputs[2, 1] = inputs[3, 0] = bad
    with pytest.raises(ValueError, match=r"inputs\[2, 1\]=.*finite in float32; remove example 2"):
        Examples(inputs, np.zeros(4, int))


def test_nan_in_float_targets_is_named():
    with pytest.raises(ValueError, match=r"targets\[1, 0\]=nan: must be finite"):
        Examples(np.zeros((2, 1)), np.array([0.0, np.nan]))


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (np.zeros((3, 2)), np.zeros(2, int), "3 inputs and 2 targets"),
        (np.zeros(3), np.zeros(3, int), r"inputs have shape \(3,\).*reshape\(-1, 1\)"),
        (np.zeros((3, 0)), np.zeros(3, int), r"inputs have shape \(3, 0\).*at least 1 feature"),
        (np.array([["a"], ["b"]]), [0, 1], "inputs are <U1: must be numbers"),
        (np.array([[None], [1]]), [0, 1], "inputs are object: must be numbers"),
        (np.zeros((2, 1)), ["cat", "dog"], "targets are <U3 .*integer classes"),
        (np.zeros((2, 1)), np.zeros((2, 2, 2)), r"targets are float64 of shape \(2, 2, 2\)"),
        (np.zeros((2, 1)), np.zeros((2, 0)), r"targets are float64 of shape \(2, 0\)"),
        (np.zeros((2, 1)), np.eye(2, dtype=int), r"use argmax\(axis=1\) for one-hot rows"),
        (np.zeros((2, 1)), [0, -1], r"targets\[1\]=-1: classes are numbered from 0"),
    ],
)
def test_arrays_of_unclear_meaning_are_refused(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        Examples(inputs, targets)


@pytest.mark.parametrize("chosen", [[2, 0], np.array([2, 0])])
def test_indices_choose_examples_in_their_order(three_examples, chosen):
    subset = three_examples[chosen]
    np.testing.assert_array_equal(subset.inputs, [[4, 5], [0, 1]])
    np.testing.assert_array_equal(subset.targets, [1, 0])


def test_slice_and_mask_choose_the_same_examples(three_examples):
    by_slice, by_mask = three_examples[1:], three_examples[np.array([False, True, True])]
    np.testing.assert_array_equal(by_slice.inputs, by_mask.inputs)
    assert len(by_mask) == 2


def test_no_indices_choose_no_examples_of_the_same_shape(three_examples):
    assert three_examples[[]].inputs.shape == (0, 2)
    assert len(three_examples[[]]) == 0


def test_single_number_is_no_index(three_examples):
    with pytest.raises(TypeError, match=r"Examples\[1\]: index with a slice or a 1-D array"):
        three_examples[1]


def test_examples_are_not_iterated_by_accident(three_examples):
    with pytest.raises(TypeError, match="index with a slice"):
        list(three_examples)


def test_input_shape_is_that_of_one_example():
    assert dataset(Examples(np.zeros((5, 1, 8, 8)), [0, 1, 0, 1, 0])).input_shape == (1, 8, 8)


def test_dataset_without_training_examples_is_refused(three_examples):
    with pytest.raises(ValueError, match="there are no training examples"):
        dataset(three_examples[:0])


@pytest.mark.parametrize("num_outputs", [-1, 0, 1])
def test_classes_need_two_outputs(three_examples, num_outputs):
    with pytest.raises(ValueError, match=rf"num_outputs={num_outputs}: must be the number of classes, 2 or more"):
        dataset(three_examples, num_outputs=num_outputs)


def test_held_out_inputs_of_another_shape_are_refused(three_examples):
    other = Examples(np.zeros((3, 4)), [0, 1, 1])
    with pytest.raises(ValueError, match=r"validation inputs have shape \(4,\) an example, train has \(2,\)"):
        dataset(three_examples, validation=other)


def test_classes_and_float_targets_do_not_mix(three_examples):
    other = Examples(np.zeros((3, 2)), [0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="test targets are float32, train's are int64"):
        dataset(three_examples, test=other)


def test_held_out_class_without_an_output_is_named(three_examples):
    other = Examples(np.zeros((2, 2)), [1, 7])
    with pytest.raises(ValueError, match=r"test targets\[1\]=7: classes must be below num_outputs=2"):
        dataset(three_examples, test=other)


def test_float_targets_have_one_column_an_output():
    with pytest.raises(ValueError, match="train targets have 3 columns, num_outputs=2"):
        dataset(Examples(np.zeros((2, 1)), np.zeros((2, 3))))


@pytest.mark.parametrize("groups", [["b", "a", "b"], np.array(["b", "a", "b"], object), [3, 1, 3]])
def test_client_keys_are_strings_or_integers(three_examples, groups):
    assert dataset(three_examples, groups=groups).groups.tolist() == list(groups)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "b"], r"groups have shape \(2,\): must be \(3,\)"),
        ([1.0, 2.0, np.nan], "groups are float64: client keys must be strings or integers"),
        (np.array(["a", None, "b"], object), "groups are object: client keys must be"),
    ],
)
def test_other_client_keys_are_refused(three_examples, groups, message):
    with pytest.raises(ValueError, match=message):
        dataset(three_examples, groups=groups)


def test_room_is_imported_without_its_heavy_neighbours():
    heavy = "torch", "sklearn", "pandas", "flwr", "hydra", "omegaconf"
    code = f"import sys, fedq.data; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
