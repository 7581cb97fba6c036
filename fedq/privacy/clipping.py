"""Bounds each example's gradient over all parameters together, and adds up: in floating point, or in integers.
Knows per-example gradients and a clip norm; not noise, sampling, budgets or how the gradients came about.

Both give an example whose gradient, or its norm, is not finite no share. They differ in what one may claim.

**Floating point.** An example is scaled so that its float32 share is shorter than the clip norm: norms are at most
2^-18.9 too small, scaling and rounding add 2^-22, and all aim 2^-18 below the clip. The *sum* is float32 too, so its
last bits depend on all examples together; adding or removing one moves it by its share and by up to about
batch^2 * 2^-24 clips of round-off.

**Integers.** The clip norm is 2^26 units, and each example's share is a vector of whole units whose exact squared
norm is checked. Sums of integers are exact in any order (float64 holds 2^53), so one example more or less moves the
sum by its share and not by any round-off. A share is the clipped gradient with each value rounded toward zero; that of
a Linear layer's weight is the product of two vectors of integers, each a rounded factor of the gradient g x^T, about
2^13 units long: so the matrices need not be written out here either. Any rounding would do, as long as it looks at one
example only. Where rounding the factors to nearest ends beyond the bound they are rounded toward zero, and if that were
not enough the example would have no share.

What goes into the rounding is float32, and so may turn on where in a batch of what size an example stands; `alike`
sees to it that it does not. The bound on a share is 2^-13 below the clip norm nevertheless: room for a hundred times
what was seen without that care.

A batch may be padded: only the first `count` rows have a share. All rows are computed alike, so that shapes, hence
kernels, do not tell how many count.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedq.per_example import Contribution, Dense, Outer
from fedq.per_example.contributions import exact

# Aim a hair under the bound, so that what float32 norms and products are off by cannot exceed it.
_MARGIN = 1 - 2.0**-18
# On the grid rounding moves a norm by some 2^-15 of it: few examples then need to be rounded toward zero.
_GRID_MARGIN = 1 - 2.0**-12
# Beyond it the factor is near the end of float32's range, where it has fewer digits than the margin needs.
_LONGEST_GRADIENT = 2.0**100

UNITS = 2.0**26  # of the clip norm
_LONGEST_SHARE = UNITS - 2.0**13
_PART = 1 << 17  # values that are in float64 at once

Pruned = Mapping[nn.Parameter, Tensor]  # parameter -> bool, True where it is 0.0 and stays so


def clip_and_sum(
    contributions: Sequence[Contribution],
    parameters: Sequence[nn.Parameter],
    clip_norm: float,
    pruned: Pruned | None = None,
    *,
    count: int | None = None,
) -> Tensor:
    """Clip each example's gradient and sum: flat float64 on the CPU, in the order of `parameters`.

    Pruned values take no part in the norm. A parameter without contribution gets zeros. `count`: how many rows have a
    share, the first ones; all by default. Uses the contributions up.
    """
    masked = _masked(contributions, pruned or {})
    factors = _factors(masked, clip_norm, count, margin=_MARGIN)
    return _in_order({c.parameter: c.weighted_sum(factors) for c in masked}, parameters)


def clip_and_round(
    contributions: Sequence[Contribution],
    parameters: Sequence[nn.Parameter],
    clip_norm: float,
    pruned: Pruned | None = None,
    *,
    count: int | None = None,
) -> Tensor:
    """The same on the grid of clip_norm / UNITS: flat float64 whole numbers, exact."""
    masked = _masked(contributions, pruned or {})
    scales = _factors(masked, clip_norm, count, margin=_GRID_MARGIN) * (UNITS / clip_norm)
    shares = [_Factors(c, scales) if isinstance(c, Outer) else _Rows(c, scales) for c in masked]
    # By lists of examples, which may be empty, and not by branches: neighbours do not differ in what is executed.
    beyond = _beyond(shares)
    for share in shares:
        share.truncate(beyond)
    beyond = _beyond(shares)  # none, by the margin; but the guarantee shall rest on integers alone
    for share in shares:
        share.forget(beyond)
    return _in_order({share.parameter: share.sum() for share in shares}, parameters)


class _Rows:
    """One parameter's shares as rows of integers, rounded toward zero."""

    def __init__(self, dense: Dense, scales: Tensor) -> None:
        self.parameter, self._dense = dense.parameter, dense
        rows = dense.rows
        # To int32 it is rounded toward zero. Of a row that is not longer than UNITS no value is.
        self._rows = rows.mul_(scales.to(rows.device, rows.dtype).unsqueeze(1)).to(torch.int32)
        self.squares = torch.cat([torch.linalg.vecdot(part, part) for part in self._parts()]).cpu()

    def truncate(self, examples: Tensor) -> None:
        pass  # it is already

    def forget(self, examples: Tensor) -> None:
        self._rows.index_fill_(0, examples.to(self._rows.device), 0)

    def sum(self) -> Tensor:
        total = torch.zeros(self._rows.shape[1], dtype=torch.float64)
        for part in self._parts():
            total += (part.new_ones(len(part)) @ part).cpu()
        return self._dense.in_order(total)

    def _parts(self) -> Iterator[Tensor]:
        """In float64, as many rows at once as the cache holds."""
        at_once = max(1, _PART // max(1, self._rows.shape[1]))
        return (exact(part) for part in torch.split(self._rows, at_once))


class _Factors:
    """One weight's shares as outer products of integer vectors."""

    def __init__(self, outer: Outer, scales: Tensor) -> None:
        self.parameter, self._outer = outer.parameter, outer
        left, right = outer.lengths()
        # The length goes to both so that rounding errors are as large in one as in the other, relative to its values.
        longer = (outer.right.shape[1] / max(1, outer.left.shape[1])) ** 0.25
        of_right = (scales * left * right).sqrt() * longer
        zero = ~(of_right > 0)  # also where a dropped example's length is not finite
        self._scales = (
            torch.where(zero, 0.0, scales * right / of_right).unsqueeze(1),
            torch.where(zero, 0.0, of_right / right).unsqueeze(1),
        )
        self._left, self._right = (
            (values * scale).round_()  # in float64, as the scale is
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
    """Exact where both, and their product, are at most 2^53; beyond 2^53 where it is."""
    return torch.linalg.vecdot(left, left) * torch.linalg.vecdot(right, right)  # type: ignore[no-any-return]


def _beyond(shares: Sequence[_Rows | _Factors]) -> Tensor:
    """Indices of the examples whose share is too long; exact, since float64 holds whole squares up to 2^53."""
    if not shares:
        return torch.zeros(0, dtype=torch.long)
    squares = torch.stack([share.squares for share in shares]).sum(0)
    return (~(squares <= _LONGEST_SHARE**2)).nonzero().flatten()


def _masked(contributions: Sequence[Contribution], pruned: Pruned) -> list[Contribution]:
    masked = []
    for contribution in contributions:
        if isinstance(contribution, Outer) and contribution.left.device.type != "cpu":
            contribution = contribution.dense()  # a GPU may be told to multiply matrices in TF32, or lack float64
        if contribution.parameter in pruned:
            contribution = contribution.dense()
            contribution.rows.masked_fill_(pruned[contribution.parameter].flatten(), 0.0)
        masked.append(contribution)
    return masked


def made_of(contributions: Sequence[Contribution], clip_norm: float, pruned: Pruned | None = None) -> list[Tensor]:
    """All that `clip_and_round` makes shares of, before it rounds: tensors with one row for each example."""
    masked = _masked(contributions, pruned or {})
    factors = _factors(masked, clip_norm, None, margin=_GRID_MARGIN)
    parts = [[c.left, c.right, *c.lengths()] if isinstance(c, Outer) else [c.rows] for c in masked]
    return [factors, *(part for of_one in parts for part in of_one)]


def _factors(contributions: Sequence[Contribution], clip_norm: float, count: int | None, *, margin: float) -> Tensor:
    """float64 (n,) of the clip; what is to be dropped is made zero in the contributions themselves: 0 * NaN is NaN."""
    if not contributions:
        return torch.zeros(0, dtype=torch.float64)
    squares = torch.zeros(contributions[0].examples, dtype=torch.float64)
    for contribution in contributions:  # one by one: torch.sum adds the last columns up in another order
        squares += contribution.squared_norms().cpu()
    norms = squares.sqrt()
    usable = norms <= min(_LONGEST_GRADIENT * clip_norm, torch.finfo(torch.float32).max)  # not if NaN
    usable[len(usable) if count is None else count :] = False
    dropped = (~usable).nonzero().flatten()
    for contribution in contributions:
        contribution.forget(dropped)
    factors = torch.clamp(clip_norm * margin / norms, max=1.0)  # norm 0: inf, clamped to 1
    return torch.where(usable, factors, 0.0)


def _in_order(sums: Mapping[nn.Parameter, Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    zeros = torch.zeros
    return torch.cat([sums[p] if p in sums else zeros(p.numel(), dtype=torch.float64) for p in parameters])
