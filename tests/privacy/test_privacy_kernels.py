"""Compiled clipping against torch's: the same shares up to the rounding of a norm, exact sums, rows that stay apart."""

import numpy as np
import pytest
import torch
from torch import nn

from fedq.per_example import Dense
from fedq.privacy import jit
from fedq.privacy.clipping import UNITS, clip_and_round, clip_and_sum

kernels = pytest.importorskip("fedq.privacy.kernels")
CLIP = 0.7


def contributions(rows, *, transposed=False):
    parameter = nn.Parameter(torch.zeros(5, 13) if transposed else torch.zeros(rows.shape[1]))
    axes = {"stored": (13, 5), "axes": (1, 0)} if transposed else {}
    return parameter, [Dense(parameter, torch.from_numpy(rows.copy()), **axes)]


def gradients(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-4, 3, size=(n, 1))).astype(np.float32)


@pytest.mark.parametrize("width", [1, 7, 8, 65, 1000])
def test_norms_are_those_of_float64(width):
    rows, squares = gradients(9, width), np.empty(9)
    kernels.squared_norms(rows.reshape(-1), width, squares)
    np.testing.assert_allclose(squares, (rows.astype(np.float64) ** 2).sum(1), rtol=1e-13)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bounded_sum", [clip_and_round, clip_and_sum])
def test_the_sum_is_torch_s_up_to_the_rounding_of_a_norm(bounded_sum, transposed):
    rows = gradients(20, 65)
    sums = []
    for compiled in (None, kernels):
        parameter, found = contributions(rows, transposed=transposed)
        sums.append(bounded_sum(found, [parameter], CLIP, count=17, kernels=compiled))
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-5, atol=1e-5 * float(sums[0].abs().max()))


def test_a_share_is_an_integer_vector_no_longer_than_the_clip_norm():
    for row in gradients(50, 333, seed=1):
        parameter, found = contributions(row[None])
        share = clip_and_round(found, [parameter], CLIP, kernels=kernels)
        assert torch.equal(share, share.round())
        assert float(share.square().sum()) <= UNITS**2


def test_a_share_has_the_same_bits_at_every_place_and_beside_any_others():
    rows = gradients(12, 129, seed=2)
    alone = []
    for row in rows:
        parameter, found = contributions(row[None])
        alone.append(clip_and_round(found, [parameter], CLIP, kernels=kernels))
    for order in (np.arange(12), np.arange(12)[::-1], np.roll(np.arange(12), 5)):
        parameter, found = contributions(rows[order])
        assert torch.equal(clip_and_round(found, [parameter], CLIP, kernels=kernels), torch.stack(alone).sum(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_an_example_that_is_not_finite_or_too_long_has_no_share(bad):
    rows = gradients(4, 65, seed=3)
    parameter, found = contributions(np.delete(rows, 2, 0))
    without = clip_and_round(found, [parameter], CLIP, kernels=kernels)
    rows[2, 5] = bad
    parameter, found = contributions(rows)
    assert torch.equal(clip_and_round(found, [parameter], CLIP, kernels=kernels), without)


def test_pruned_values_count_in_no_norm_and_no_sum():
    rows = gradients(6, 65, seed=4)
    zeros = torch.zeros(65, dtype=torch.bool)
    zeros[::3] = True
    parameter, found = contributions(rows)
    pruned = clip_and_round(found, [parameter], CLIP, {parameter: zeros}, kernels=kernels)
    rows[:, ::3] = 0
    parameter, found = contributions(rows)
    assert torch.equal(pruned, clip_and_round(found, [parameter], CLIP, kernels=kernels))


def test_kernels_are_used_after_enough_work_by_public_numbers(monkeypatch):
    monkeypatch.setattr(jit, "_work", 0)
    monkeypatch.setattr(jit, "LEAST_WORK_AFTER_NUMBA", 1000)
    monkeypatch.setattr(jit, "LEAST_WORK", 1000)
    assert jit.kernels(999) is None
    assert jit.kernels(1) is kernels
