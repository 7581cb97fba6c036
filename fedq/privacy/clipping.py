"""Per-example clipping over all parameters together, and the sum of the clipped gradients: in floats or in integers.
Knows per-example gradients and a clip norm; not noise, sampling, budgets or how gradients are computed.

An example's share is its clipped gradient. In both forms, an example whose gradient or norm is not finite has the share
zero. The forms differ in their guarantee.

**Floating point.** An example is scaled so that its float32 share is shorter than the clip norm: norms are at most
2^-18.9 too small, scaling and rounding add 2^-22, and all aim 2^-18 below the clip norm. The *sum* is float32 too, so
its last bits depend on all examples together. Adding or removing one example changes the sum by the share and by up to
about batch^2 * 2^-24 clip norms of round-off.

**Integers.** The clip norm is 2^26 units. Each share is a vector of integers in these units, and its exact squared norm
is checked. Sums of integers are exact in any order (float64 holds 2^53), so one example more or less changes the sum by
its share and by no round-off. A share is the clipped gradient with each value rounded toward zero. The share of a
Linear layer's weight is the product of two integer vectors, each a rounded factor of the gradient g x^T, about 2^13
units long, so the matrices are not materialized here either. Any rounding is allowed that depends on one example only.
Where the factors, rounded to nearest, exceed the bound, they are rounded toward zero. If that is not enough, the
example has the share zero.

The input of the rounding is float32, so it could depend on the size of the batch and on the example's place in it;
`is_batch_invariant` tests that it does not. The bound on a share is still 2^-13 below the clip norm: a hundred times
the largest error measured without that test.

A batch may be padded: only the first `count` rows have a share. All rows take the same computations, so that shapes,
and hence kernels, do not depend on `count`.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from fedq.per_example import Contribution, Dense, Outer
from fedq.per_example.contributions import exact

# Slightly below the bound, so that errors of float32 norms and products cannot exceed it.
_MARGIN = 1 - 2.0**-18
# Rounding to the grid changes a norm by about 2^-15 of it: few examples then need to be rounded toward zero.
_GRID_MARGIN = 1 - 2.0**-12
# For a longer gradient the factor is near the end of float32's range, with fewer digits than the margin needs.
_LONGEST_GRADIENT = 2.0**100

UNITS = 2.0**26  # of the clip norm
_LONGEST_SHARE = UNITS - 2.0**13
_PART = 1 << 17  # values converted to float64 at once

Pruned = Mapping[nn.Parameter, Tensor]  # parameter -> bool, True where it is 0.0 and stays so


def clip_and_sum(
    contributions: Sequence[Contribution],
    parameters: Sequence[nn.Parameter],
    clip_norm: float,
    pruned: Pruned | None = None,
    *,
    count: int | None = None,
    kernels: ModuleType | None = None,
) -> Tensor:
    """Clip each example's gradient and sum: flat float64 on the CPU, in the order of `parameters`.

    Pruned values are left out of the norm. A parameter without a contribution gets zeros. `count`: the number of rows,
    from the first, that have a share; by default all. `kernels`: `fedq.privacy.kernels`, or None to compute by torch.
    Overwrites the contributions.
    """
    masked = _masked(contributions, pruned or {})
    factors = _factors(masked, clip_norm, count, margin=_MARGIN, kernels=kernels)
    return _in_order({c.parameter: c.weighted_sum(factors) for c in masked}, parameters)


def clip_and_round(
    contributions: Sequence[Contribution],
    parameters: Sequence[nn.Parameter],
    clip_norm: float,
    pruned: Pruned | None = None,
    *,
    count: int | None = None,
    kernels: ModuleType | None = None,
) -> Tensor:
    """The same on the grid of clip_norm / UNITS: an exact sum, as flat float64 integers in these units."""
    masked = _masked(contributions, pruned or {})
    scales = _factors(masked, clip_norm, count, margin=_GRID_MARGIN, kernels=kernels) * (UNITS / clip_norm)
    shares = [_Factors(c, scales) if isinstance(c, Outer) else _rows(c, scales, kernels) for c in masked]
    # Lists of examples, possibly empty, instead of branches: the same code runs for neighbouring data.
    beyond = _beyond(shares)
    for share in shares:
        share.truncate(beyond)
    beyond = _beyond(shares)  # empty, by the margin; checked, so that the guarantee depends on integers alone
    for share in shares:
        share.forget(beyond)
    return _in_order({share.parameter: share.sum() for share in shares}, parameters)


class _Rows:
    """The shares of one parameter as rows of integers, rounded toward zero."""

    def __init__(self, dense: Dense, scales: Tensor) -> None:
        self.parameter, self._dense = dense.parameter, dense
        rows = dense.rows
        # The cast to int32 rounds toward zero. No value of a row that is at most UNITS long overflows it.
        self._rows = rows.mul_(scales.to(rows.device, rows.dtype).unsqueeze(1)).to(torch.int32)
        self.squares = torch.cat([torch.linalg.vecdot(part, part) for part in self._parts()]).cpu()

    def truncate(self, examples: Tensor) -> None:
        pass  # rows are rounded toward zero from the start

    def forget(self, examples: Tensor) -> None:
        self._rows.index_fill_(0, examples.to(self._rows.device), 0)

    def sum(self) -> Tensor:
        total = torch.zeros(self._rows.shape[1], dtype=torch.float64)
        for part in self._parts():
            total += (part.new_ones(len(part)) @ part).cpu()
        return self._dense.in_order(total)

    def _parts(self) -> Iterator[Tensor]:
        """Rows in float64, as many at once as the cache holds."""
        at_once = max(1, _PART // max(1, self._rows.shape[1]))
        return (exact(part) for part in torch.split(self._rows, at_once))


class _CompiledRows(_Rows):
    """The same by compiled kernels, in the memory of the gradients."""

    def __init__(self, dense: Dense, scales: Tensor, kernels: ModuleType) -> None:
        self.parameter, self._dense, self._kernels = dense.parameter, dense, kernels
        values = dense.rows.numpy()
        rounded, squares = values.view(np.int32), np.empty(len(values))
        kernels.round_rows(
            values.reshape(-1), rounded.reshape(-1), values.shape[1], scales.numpy().astype(np.float32), squares
        )
        self._rows, self.squares = torch.from_numpy(rounded), torch.from_numpy(squares)

    def sum(self) -> Tensor:
        total = np.zeros(self._rows.shape[1])
        self._kernels.sum_rows(self._rows.numpy().reshape(-1), len(total), total)
        return self._dense.in_order(torch.from_numpy(total))


def _rows(dense: Dense, scales: Tensor, kernels: ModuleType | None) -> _Rows:
    if kernels is not None and _compilable(dense):
        return _CompiledRows(dense, scales, kernels)
    return _Rows(dense, scales)


def _compilable(contribution: Contribution) -> bool:
    """Whether the kernels can read these gradients; by their type and place, never by their values."""
    if isinstance(contribution, Outer):
        return False
    rows = contribution.rows
    return rows.dtype == torch.float32 and rows.device.type == "cpu" and rows.is_contiguous()


class _Factors:
    """The shares of one weight as outer products of integer vectors."""

    def __init__(self, outer: Outer, scales: Tensor) -> None:
        self.parameter, self._outer = outer.parameter, outer
        left, right = outer.lengths()
        # The scale is split so that both factors have the same rounding error relative to their values.
        longer = (outer.right.shape[1] / max(1, outer.left.shape[1])) ** 0.25
        of_right = (scales * left * right).sqrt() * longer
        zero = ~(of_right > 0)  # true also where the length of a dropped example is not finite
        self._scales = (
            torch.where(zero, 0.0, scales * right / of_right).unsqueeze(1),
            torch.where(zero, 0.0, of_right / right).unsqueeze(1),
        )
        self._left, self._right = (
            (values * scale).round_()  # in float64, like the scale
            for values, scale in zip((outer.left, outer.right), self._scales, strict=True)
        )
        self.squares = _product_of_squares(self._left, self._right)

    def truncate(self, examples: Tensor) -> None:
        shortened = [
            (values[examples] * scale[examples]).trunc_()
            for values, scale in zip((self._outer.left, self._outer.right), self._scales, strict=True)
        ]
        self.squares[examples] = _product_of_squares(*shortened)
        self._left[examples], self._right[examples] = shortened

    def forget(self, examples: Tensor) -> None:
        self._left[examples], self._right[examples] = 0.0, 0.0

    def sum(self) -> Tensor:
        total: Tensor = self._left.T @ self._right
        return total.flatten()


def _product_of_squares(left: Tensor, right: Tensor) -> Tensor:
    """Product of squared norms: exact up to 2^53, and above 2^53 where the true product is."""
    return torch.linalg.vecdot(left, left) * torch.linalg.vecdot(right, right)  # type: ignore[no-any-return]


def _beyond(shares: Sequence[_Rows | _Factors]) -> Tensor:
    """Indices of the examples whose share is too long; exact, since float64 holds integers up to 2^53."""
    if not shares:
        return torch.zeros(0, dtype=torch.long)
    squares = torch.stack([share.squares for share in shares]).sum(0)
    return (~(squares <= _LONGEST_SHARE**2)).nonzero().flatten()


def _masked(contributions: Sequence[Contribution], pruned: Pruned) -> list[Contribution]:
    masked = []
    for contribution in contributions:
        if isinstance(contribution, Outer) and contribution.left.device.type != "cpu":
            contribution = contribution.dense()  # a GPU may multiply matrices in TF32, or lack float64
        if contribution.parameter in pruned:
            contribution = contribution.dense()
            contribution.rows.masked_fill_(pruned[contribution.parameter].flatten(), 0.0)
        masked.append(contribution)
    return masked


def unrounded_shares(
    contributions: Sequence[Contribution], clip_norm: float, pruned: Pruned | None = None
) -> list[Tensor]:
    """The inputs of the rounding in `clip_and_round`: tensors with one row for each example."""
    masked = _masked(contributions, pruned or {})
    factors = _factors(masked, clip_norm, None, margin=_GRID_MARGIN)
    parts = [[c.left, c.right, *c.lengths()] if isinstance(c, Outer) else [c.rows] for c in masked]
    return [factors, *(part for of_one in parts for part in of_one)]


def _factors(
    contributions: Sequence[Contribution],
    clip_norm: float,
    count: int | None,
    *,
    margin: float,
    kernels: ModuleType | None = None,
) -> Tensor:
    """Clip factors, float64 (n,). Sets dropped rows of the contributions to zero, because 0 * NaN is NaN."""
    if not contributions:
        return torch.zeros(0, dtype=torch.float64)
    squares = torch.zeros(contributions[0].examples, dtype=torch.float64)
    for contribution in contributions:  # one by one: torch.sum adds the last columns up in another order
        squares += _squared_norms(contribution, kernels)
    norms = squares.sqrt()
    usable = norms <= min(_LONGEST_GRADIENT * clip_norm, torch.finfo(torch.float32).max)  # not if NaN
    usable[len(usable) if count is None else count :] = False
    dropped = (~usable).nonzero().flatten()
    for contribution in contributions:
        contribution.forget(dropped)
    factors = torch.clamp(clip_norm * margin / norms, max=1.0)  # norm 0: inf, clamped to 1
    return torch.where(usable, factors, 0.0)


def _squared_norms(contribution: Contribution, kernels: ModuleType | None) -> Tensor:
    if kernels is None or isinstance(contribution, Outer) or not _compilable(contribution):
        return contribution.squared_norms().cpu()
    rows, squares = contribution.rows.numpy(), np.empty(contribution.examples)
    kernels.squared_norms(rows.reshape(-1), rows.shape[1], squares)
    return torch.from_numpy(squares)


def _in_order(sums: Mapping[nn.Parameter, Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    zeros = torch.zeros
    return torch.cat([sums[p] if p in sums else zeros(p.numel(), dtype=torch.float64) for p in parameters])
