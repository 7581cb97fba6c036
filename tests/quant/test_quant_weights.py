"""Integers of weights, by hand."""

import pytest
import torch

from fedq.quant.weights import WeightFormat, parameter_levels


def levels_of(rows: list[list[float]], **form: object) -> tuple[list[list[float]], list[float]]:
    levels, step, _, _ = parameter_levels(torch.tensor(rows), None, None, WeightFormat(**form))  # type: ignore[arg-type]
    return levels.tolist(), step.flatten().tolist()


def test_four_bits_have_seven_levels_to_each_side():
    levels, step = levels_of([[7.0, -3.4, 0.6, -7.0]], bits=4)
    assert levels == [[7, -3, 1, -7]]
    assert step == pytest.approx([1.0])


def test_ternary_weights_below_seven_tenths_of_the_mean_are_zero():
    # Mean magnitude 1.0, threshold 0.7: 0.6 goes; the step is the mean of what stays, (2.2 + 0.8 + 0.8) / 3.
    levels, step = levels_of([[2.2, -0.8, 0.8, 0.2]], bits=2)
    assert levels == [[1, -1, 1, 0]]
    assert step == pytest.approx([3.8 / 3])


def test_weights_that_are_pruned_do_not_lower_the_threshold_of_ternary_ones():
    dense, step = levels_of([[2.2, -0.8, 0.8, 0.2]], bits=2)
    sparse, sparse_step = levels_of([[2.2, -0.8, 0.8, 0.2, 0.0, 0.0, 0.0, 0.0]], bits=2)
    assert sparse == [[*dense[0], 0, 0, 0, 0]]
    assert sparse_step == step


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_row_of_zeros_stays_zero(bits: int):
    levels, step = levels_of([[0.0, 0.0], [1.0, -1.0]], bits=bits)
    assert levels[0] == [0, 0]
    assert step[0] > 0


def test_one_step_for_a_tensor_is_that_of_its_largest_weight():
    levels, step = levels_of([[63.0, 1.0], [6.3, 0.4]], granularity="tensor")
    assert levels == [[63, 1], [6, 0]]
    assert step == pytest.approx([1.0, 1.0])


def test_a_large_bias_widens_the_one_step_of_all_rows():
    weight, bias = torch.tensor([[1.0], [1.0]]), torch.tensor([0.0, 2.0**30])
    _, step, bias_levels, _ = parameter_levels(weight, bias, 0.5, WeightFormat(granularity="tensor"))
    assert step.flatten().tolist() == [2.0, 2.0]
    assert bias_levels is not None
    assert bias_levels.tolist() == [0.0, 2.0**30]


def test_stochastic_rounding_is_unbiased_and_between_the_neighbours():
    weight = torch.tensor([[63.0, 0.3, -1.75]]).repeat(40_000, 1)
    torch.manual_seed(0)
    form = WeightFormat(rounding="stochastic")
    levels, _, _, _ = parameter_levels(weight, None, None, form, training=True)
    assert set(levels[:, 1].tolist()) == {0.0, 1.0}
    assert set(levels[:, 2].tolist()) == {-2.0, -1.0}
    assert set(levels[:, 0].tolist()) == {63.0}
    # Standard deviation of one is at most 0.5; six of the mean's.
    assert levels.mean(0).tolist() == pytest.approx([63.0, 0.3, -1.75], abs=6 * 0.5 / 40_000**0.5)


def test_what_is_delivered_is_rounded_to_nearest():
    form = WeightFormat(rounding="stochastic")
    levels, _, _, _ = parameter_levels(torch.tensor([[63.0, 0.4, 0.6]]), None, None, form)
    assert levels.tolist() == [[63, 0, 1]]


@pytest.mark.parametrize(("limit", "portable"), [(63, True), (64, True), (65, False), (127, False)])
def test_only_sums_that_fit_in_sixteen_bits_are_portable(limit: int, portable: bool):
    assert (2 * 255 * limit <= 32767) == portable
    assert WeightFormat(limit=limit).portable == portable
