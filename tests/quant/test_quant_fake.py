import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedq.quant.fake import fake_quantize, fake_quantize_in_range, fake_quantize_parameters
from fedq.quant.weights import WeightFormat, parameter_levels


def test_values_go_to_the_nearest_level_and_ties_to_the_even_one():
    x = torch.tensor([0.2, 0.25, 0.3, 0.75, 1.25, -0.25, -0.75])
    assert fake_quantize(x, 0.5, -128, 127).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0, 0.0, -1.0]


def test_values_beyond_the_range_go_to_its_ends():
    x = torch.tensor([1e9, -1e9])
    assert fake_quantize(x, 0.5, -128, 127).tolist() == [63.5, -64.0]
    assert fake_quantize(x, 0.5, 0, 255).tolist() == [127.5, 0.0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=50),
    st.sampled_from([1e-3, 4 / 127, 8 / 255, 1.0]),
)
def test_within_the_range_the_error_is_at_most_half_a_step(values: list[float], step: float):
    x = torch.tensor(values).clamp(-127 * step, 127 * step)
    error = (fake_quantize(x, step, -128, 127) - x).abs().max().item()
    assert error <= step / 2 + 127 * step * 2**-23  # and one rounding of float32 in x / step and in level * step


def test_gradient_passes_inside_the_range_only():
    x = torch.tensor([-70.0, -1.0, 0.3, 63.0, 64.0], requires_grad=True)
    fake_quantize(x, 0.5, -128, 127).backward(torch.arange(1.0, 6.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


def test_gradient_of_a_grid_from_zero_is_that_of_relu():
    x = torch.tensor([-1.0, -1e-6, 0.0, 1e-6, 1.0], requires_grad=True)
    fake_quantize(x, 0.5, 0, 255).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_values_that_cannot_leave_the_range_keep_their_gradient():
    x = torch.tensor([-1.0, 0.26, 1.0], requires_grad=True)
    y = fake_quantize_in_range(x, 0.5)
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad is not None
    assert y.tolist() == [-1.0, 0.5, 1.0]
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("x", "slope"),
    [
        (0.8, 2 - 1.6),  # inside: round(u) - u for u = x / step
        (0.7, 1 - 1.4),
        (1000.0, 127.0),  # outside: the last level
        (-1000.0, -128.0),
    ],
)
def test_gradient_of_the_step_is_that_of_lsq(x: float, slope: float):
    step = torch.tensor([0.5], requires_grad=True)
    fake_quantize(torch.tensor([x]), step, -128, 127, slope=3.0).backward(torch.tensor([2.0]))
    assert step.grad is not None
    assert step.grad.item() == pytest.approx(2.0 * 3.0 * slope, rel=1e-6)


def test_each_output_channel_has_its_own_step():
    weight = torch.tensor([[63.0, -31.4, 0.6], [0.63, 0.014, -0.0051]])
    levels, step, _, _ = parameter_levels(weight, None, None, WeightFormat(limit=63))
    assert step.flatten().tolist() == pytest.approx([1.0, 0.01])
    assert levels.tolist() == [[63, -31, 1], [63, 1, -1]]


@pytest.mark.parametrize("weight_range", [1, 63, 127])
def test_the_largest_weight_of_a_channel_gets_the_last_level(weight_range: int):
    weight = torch.randn(64, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 1e-3
    levels, _, _, _ = parameter_levels(weight, None, None, WeightFormat(limit=weight_range))
    assert levels.abs().amax(dim=(1, 2, 3)).tolist() == [weight_range] * 64


def test_bias_lies_on_the_grid_of_the_sums():
    weight, bias = torch.tensor([[63.0], [126.0]]), torch.tensor([1.3, 1.3])
    fake_quantized, fake_quantized_bias = fake_quantize_parameters(
        weight, bias, 0.5, WeightFormat()
    )  # steps of the sums: 0.5 and 1.0
    assert fake_quantized.tolist() == [[63.0], [126.0]]
    assert fake_quantized_bias is not None
    assert fake_quantized_bias.tolist() == [1.5, 1.0]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1e-30, -1e-30]])
def test_a_channel_without_weights_keeps_its_bias(weights: list[float]):
    bias = torch.tensor([-7.7])
    levels, _, bias_levels, bias_step = parameter_levels(torch.tensor([weights]), bias, 1 / 32, WeightFormat(limit=63))
    assert bias_levels is not None
    assert bias_step is not None
    assert levels.abs().max() == 0
    assert bias_levels.abs().max() <= 2**30  # so int32 holds it and the products
    assert (bias_levels * bias_step).item() == pytest.approx(-7.7, rel=1e-6)


@pytest.mark.parametrize("bias", [torch.ones(2), None])
def test_gradient_of_the_parameters_is_the_identity(bias: Tensor | None):
    weight = torch.tensor([[0.3, 5.0], [0.0, 0.0]], requires_grad=True)
    bias = None if bias is None else bias.requires_grad_()
    fake_quantized, fake_quantized_bias = fake_quantize_parameters(weight, bias, 0.5, WeightFormat())
    (fake_quantized * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward(retain_graph=True)
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    if bias is not None and fake_quantized_bias is not None:
        fake_quantized_bias.backward(torch.tensor([5.0, 6.0]))
        assert bias.grad is not None
        assert bias.grad.tolist() == [5.0, 6.0]
