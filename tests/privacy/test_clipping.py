"""The bound on one example's share, in the worst cases that floats offer, and sums that are exact."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedq import models
from fedq.per_example import SAMPLERS, Dense, Outer, recorded
from fedq.privacy.clipping import UNITS, clip_and_round, clip_and_sum
from fedq.quant import quantize, register_grad_samplers

exponents = st.integers(-44, 37)  # float32 ends at 1e-45 and 3e38


def drawn(seed: int, *shape: int, exponent: int = 0, spread: int = 0) -> Tensor:
    """Normals times 10^exponent, each value up to 10^spread larger or smaller; what overflows is made finite."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values *= 10.0 ** (exponent + spread * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1))
    return values.clamp(-3e38, 3e38).float()


@cache
def parameters_of(out: int, ins: int) -> tuple[nn.Parameter, ...]:
    return tuple(nn.Parameter(torch.zeros(*shape)) for shape in ((out, ins), (out,), (5, 40)))


def batch(seed: int, n: int, *, exponent: int = 0, spread: int = 0, out: int = 7, ins: int = 30):
    """Contributions to three parameters, and the parameters."""
    weight, bias, kernel = parameters_of(out, ins)
    left = drawn(seed, n, out, exponent=exponent, spread=spread)
    outer = Outer(weight, left, drawn(seed + 1, n, ins, exponent=exponent // 3, spread=spread))
    rows = drawn(seed + 2, n, 200, exponent=exponent, spread=spread)
    return [outer, Dense(bias, left.clone()), Dense(kernel, rows, (5, 5, 8), (0, 2, 1))], [weight, bias, kernel]


@settings(max_examples=150, deadline=None)
@given(
    exponent=exponents, spread=st.integers(0, 12), clip=st.sampled_from([1e-3, 0.1, 1.0, 30.0]), seed=st.integers(0, 99)
)
@pytest.mark.parametrize("bounded_sum", [clip_and_sum, clip_and_round])
def test_no_share_of_one_example_is_longer_than_the_clip_norm(bounded_sum, exponent, spread, clip, seed):
    """Huge, tiny and denormal values, side by side; measured in float64."""
    share = bounded_sum(*batch(seed, 1, exponent=exponent, spread=spread), clip)
    assert torch.isfinite(share).all()
    assert float(share.norm()) <= (clip if bounded_sum is clip_and_sum else UNITS)


@pytest.mark.parametrize("bounded_sum", [clip_and_sum, clip_and_round])
def test_a_large_model_s_share_is_within_the_bound_and_close_to_it(bounded_sum):
    share = bounded_sum(*batch(3, 1, exponent=3, out=300, ins=4000), 1.0)
    longest = 1.0 if bounded_sum is clip_and_sum else UNITS
    assert 0.999 * longest <= float(share.norm()) <= longest


def test_a_sequence_s_gradient_that_cancels_is_bounded_by_what_is_summed():
    """Two places whose huge gradients cancel but for float32's round-off: the norm is of the very sum that counts."""
    layer = nn.Linear(3, 2, bias=False)
    g = torch.tensor([[[1e8, 3.0], [-1e8, 3.0]]])
    x = torch.tensor([[[1.0, 1.0 + 2**-20, 3.3], [1.0 + 2**-22, 1.0, 3.3]]])
    share = clip_and_sum(SAMPLERS[nn.Linear](layer, x, g), [layer.weight], 1.0)
    assert 0.99 <= float(share.norm()) <= 1.0


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e3])  # all, some and none are clipped
def test_both_sums_are_those_of_one_example_at_a_time_in_float64(clip):
    contributions, parameters = batch(1, 50, spread=1)
    rows = torch.cat([c.dense().rows.double() for c in contributions], dim=1)

    def oracle(bound: float) -> Tensor:
        return (rows * torch.clamp(bound / rows.norm(dim=1, keepdim=True), max=1)).sum(0)

    rounded = clip_and_round(batch(1, 50, spread=1)[0], parameters, clip) * (clip / UNITS)
    summed = clip_and_sum(contributions, parameters, clip)
    assert (summed - oracle(clip)).norm() <= 1e-5 * oracle(clip).norm()
    # Each factor's values are off by 1 / sqrt(12) units of 2^-13 of its length; both factors share the error alike.
    off = math.sqrt(50) * math.sqrt(2 * math.sqrt(7 * 30) / 12) * 2**13 * clip / UNITS
    assert (rounded - oracle(clip * (1 - 2**-12))).norm() <= 2 * off


def test_rounded_sums_are_whole_numbers_and_the_same_in_any_order_and_split():
    def summed(rows: Tensor) -> Tensor:
        contributions, parameters = batch(1, 64, spread=2)
        for c in contributions:
            if isinstance(c, Outer):
                c.left, c.right = c.left[rows], c.right[rows]
            else:
                c.rows = c.rows[rows].clone()
        return clip_and_round(contributions, parameters, 1.0)

    whole = summed(torch.arange(64))
    assert torch.equal(whole, whole.round())
    assert torch.equal(whole, summed(torch.randperm(64, generator=torch.Generator().manual_seed(2))))
    assert torch.equal(whole, summed(torch.arange(40)) + summed(torch.arange(40, 64)))
    # so that one example more moves the sum by its own share, to the last bit, and by nothing else
    assert torch.equal(whole - summed(torch.arange(63)), summed(torch.tensor([63])))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_batch_with_one_example_more_moves_the_sum_by_at_most_the_clip_norm(name, quantized):
    """Through the whole model, whose float32 kernels see batches of other sizes."""
    torch.manual_seed(0)
    model = getattr(models, name)((1, 28, 28), 10).to(memory_format=torch.channels_last)
    if quantized:
        quantize(model)
        register_grad_samplers()
    inputs, targets = torch.randn(65, 1, 28, 28), torch.randint(0, 10, (65,))

    def summed(rows: Tensor) -> Tensor:
        with recorded(model) as recorder:
            cross_entropy(model(inputs[rows]), targets[rows], reduction="sum").backward()
            return clip_and_round(recorder.take(len(rows)), list(model.parameters()), 1.0)

    whole = summed(torch.arange(65))
    for left_out in (0, 31, 64):
        moved = float((whole - summed(torch.tensor([i for i in range(65) if i != left_out]))).norm())
        assert (1 - 2**-10) * UNITS <= moved <= UNITS


def test_a_share_that_rounding_to_nearest_makes_too_long_is_rounded_toward_zero():
    """Factors all of whose values end in .6: up is beyond the bound, down is not."""
    n = 40_000
    weight = nn.Parameter(torch.zeros(n, 1))
    # |left| |right| = 2^26 aims at 2^26 (1 - 2^-18); sqrt(n) = 200 makes values of about 290 for left.
    for value in torch.linspace(1.0, 1.01, 23):
        outer = Outer(weight, torch.full((1, n), float(value)), torch.ones(1, 1))
        share = clip_and_round([outer], [weight], 1.0)
        assert 0.99 * UNITS <= float(share.norm()) <= UNITS
        assert int(share.long().square().sum()) <= int(UNITS) ** 2


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bounded_sum", [clip_and_sum, clip_and_round])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_example_that_is_not_finite_anywhere_has_no_share_in_anything(bounded_sum, poison, where):
    contributions, parameters = batch(4, 6)
    clean, _ = batch(4, 6)
    for c in clean:
        c.forget(torch.tensor([2]))
    expected = bounded_sum(clean, parameters, 1.0)
    spoilt = contributions[where]
    (spoilt.right if isinstance(spoilt, Outer) else spoilt.rows)[2, 3] = poison
    assert torch.equal(bounded_sum(contributions, parameters, 1.0), expected)


def test_dropping_an_example_leaves_activations_as_they_are():
    contributions, parameters = batch(4, 6)
    activations = contributions[0].right
    activations[2, 3] = math.nan
    before = activations.clone()
    clip_and_sum(contributions, parameters, 1.0)
    torch.testing.assert_close(activations, before, equal_nan=True)


@pytest.mark.parametrize("bounded_sum", [clip_and_sum, clip_and_round])
def test_pruned_values_take_no_part_in_the_norm_and_are_zero_in_the_sum(bounded_sum):
    weight = nn.Parameter(torch.zeros(1, 3))
    pruned = {weight: torch.tensor([[False, True, False]])}
    outer = Outer(weight, torch.tensor([[1.0]]), torch.tensor([[3.0, 99.0, 4.0]]))
    share = bounded_sum([outer], [weight], 1.0, pruned)
    share = share / share.norm()
    assert share.tolist() == pytest.approx([0.6, 0.0, 0.8], rel=1e-6)


@pytest.mark.parametrize("bounded_sum", [clip_and_sum, clip_and_round])
def test_a_parameter_without_part_gets_zeros_in_its_place(bounded_sum):
    contributions, parameters = batch(4, 6)
    spare = nn.Parameter(torch.zeros(4))
    expected = bounded_sum(contributions, parameters, 1.0)
    got = bounded_sum(batch(4, 6)[0], [spare, *parameters], 1.0)
    assert torch.equal(got, torch.cat([torch.zeros(4, dtype=torch.float64), expected]))
    assert bounded_sum([], [spare], 1.0).tolist() == [0.0] * 4
