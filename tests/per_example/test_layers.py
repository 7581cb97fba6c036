"""Every kind of layer against the only oracle that cannot be wrong: one example at a time, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedq.per_example import Dense, Outer, recorded

sizes = st.integers(1, 5)
few = settings(max_examples=40, deadline=None)


def loss_of(outputs: Tensor) -> Tensor:
    """Sums over examples; of every output another function."""
    weights = torch.arange(1, outputs[0].numel() + 1, dtype=outputs.dtype).view(outputs[0].shape)
    return (torch.sin(outputs) * weights).sum()


def check(model: nn.Module, x: Tensor) -> list[type]:
    """Per-example gradients, their norms and a weighted sum are those of one example at a time; the kinds found."""
    model.double()
    x = x.double() if x.is_floating_point() else x
    model.train()
    expected = {p: [] for p in model.parameters() if p.requires_grad}
    for i in range(len(x)):
        gradients = torch.autograd.grad(loss_of(model(x[i : i + 1])), list(expected))
        for parameter, gradient in zip(expected, gradients, strict=True):
            expected[parameter].append(gradient)
    with recorded(model) as recorder:
        loss_of(model(x)).backward()
        found = recorder.take(len(x))
    assert {c.parameter for c in found} == set(expected)
    weights = torch.linspace(0.5, 1.5, len(x), dtype=torch.float64)
    for contribution in found:
        rows = torch.stack(expected[contribution.parameter]).flatten(1)
        assert rows.shape == contribution.dense().rows.shape
        close = {"rtol": 1e-9, "atol": 1e-9 * float(1 + rows.abs().max())}
        torch.testing.assert_close(contribution.dense().rows, rows, **close)
        torch.testing.assert_close(contribution.squared_norms(), rows.square().sum(1), **close)
        torch.testing.assert_close(contribution.weighted_sum(weights), weights @ rows, **close)
    return [type(c) for c in found]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@few
@given(n=sizes, places=st.lists(sizes, max_size=2), ins=sizes, outs=sizes, bias=st.booleans(), seed=sizes)
def test_linear(n, places, ins, outs, bias, seed):
    kinds = check(nn.Sequential(nn.Linear(ins, outs, bias=bias)), drawn(seed, n, *places, ins))
    assert kinds == [Dense if places else Outer] + [Dense] * bias


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of even kernels
@few
@given(
    n=sizes, groups=st.sampled_from([1, 2, 4]), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)), dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(["valid", "same"])),
    mode=st.sampled_from(["zeros", "replicate", "reflect", "circular"]), bias=st.booleans(), last=st.booleans(),
    seed=sizes,
)  # fmt: skip
def test_conv2d_in_both_memory_formats(n, groups, kernel, stride, dilation, padding, mode, bias, last, seed):
    stride = (1, 1) if padding == "same" else stride
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias=bias, padding_mode=mode)
    x = drawn(seed, n, 4, 7, 6)
    if last:
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    check(nn.Sequential(layer), x)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@few
@given(
    n=sizes, groups=st.sampled_from([1, 2]), kernel=st.integers(1, 3), stride=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 2), st.sampled_from(["valid", "same"])), dilation=st.integers(1, 2), seed=sizes,
)  # fmt: skip
def test_conv1d(n, groups, kernel, stride, padding, dilation, seed):
    stride = 1 if padding == "same" else stride
    check(nn.Sequential(nn.Conv1d(2, 4, kernel, stride, padding, dilation, groups)), drawn(seed, n, 2, 8))


@few
@given(n=sizes, groups=st.sampled_from([1, 2, 4]), places=st.lists(sizes, max_size=2), seed=sizes)
def test_group_norm(n, groups, places, seed):
    places = places if groups < 4 else [2, *places]  # torch refuses groups of one value
    check(nn.Sequential(nn.GroupNorm(groups, 4)), drawn(seed, n, 4, *places))


@few
@given(n=sizes, places=st.lists(sizes, max_size=2), own=st.lists(st.integers(2, 4), min_size=1, max_size=2), seed=sizes)
def test_layer_norm(n, places, own, seed):
    check(nn.Sequential(nn.LayerNorm(own)), drawn(seed, n, *places, *own))


@few
@given(n=sizes, places=st.lists(sizes, max_size=2), pad=st.sampled_from([None, 0, 3]), seed=sizes)
def test_embedding_with_and_without_a_row_that_pads(n, places, pad, seed):
    words = torch.randint(0, 6, (n, *places), generator=torch.Generator().manual_seed(seed))
    check(nn.Sequential(nn.Embedding(6, 3, padding_idx=pad)), words)


@few
@given(n=sizes, seed=sizes, frozen=st.sets(st.sampled_from(["0.weight", "0.bias", "2.weight", "3.bias"]), max_size=3))
def test_frozen_parameters_have_none_and_change_nothing_for_the_others(n, seed, frozen):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.GroupNorm(1, 3), nn.Conv2d(3, 2, 2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    check(model, drawn(seed, n, 2, 6, 6))


@few
@given(rows=st.integers(1, 4), columns=st.integers(1, 300), exponent=st.integers(-30, 13), seed=st.integers(0, 99))
def test_float32_norms_are_never_more_than_2e_6_too_short(rows, columns, exponent, seed):
    """2^-19 of the norm, which the clip's margin of 2^-18 pays for; values of mixed sizes, from the smallest on."""
    spread = 10.0 ** (8 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) - 4)
    values = drawn(seed, rows, columns) * spread * 10.0**exponent
    norms = Dense(nn.Parameter(torch.zeros(columns)), values).squared_norms().sqrt()
    true = values.double().norm(dim=1)
    assert (norms >= true * (1 - 2.0**-18.9)).all()
    assert (norms <= true * (1 + 2.0**-18) + columns * 1e-22).all()
