"""The gradients of one parameter for each example of a batch, as rows or as factors of outer products.

Depends on tensors and their norms; not on layers, clip norms or noise.

Why factors: the gradient of a Linear layer's weight for one example is g x^T. Its norm is |g| |x|, and its weighted
sum over examples is one matrix product (Goodfellow 2015, arXiv:1510.01799; Bu et al. 2023, arXiv:2210.00038). The
256 matrices themselves are never written. This holds for one position per example only. With several positions (a
convolution, a sequence) the same method would give the norm of a sum that may cancel, and the float32 sums made
afterwards could be longer than this norm. So those gradients are written out, and the norm is that of the numbers that
are summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# Squares are added in float32, then in float64: the relative error of 64 squares is at most 64 * 2^-24, in any order.
_SEGMENT = 64


@dataclass
class Dense:
    """Row i is the gradient of example i; all rows have their values in the same order."""

    parameter: nn.Parameter
    rows: Tensor  # (n, parameter.numel())
    # How to bring a row into the parameter's order: view as `stored`, then permute by `axes`. Empty: in order already.
    stored: Sequence[int] = ()
    axes: Sequence[int] = ()

    @property
    def examples(self) -> int:
        return len(self.rows)

    def squared_norms(self) -> Tensor:
        """float64 (n,), relative error at most 2^-17.9 (too small), never by cancellation."""
        rows = self.rows
        if rows.dtype != torch.float32:
            return exact(rows).square().sum(1)
        whole = rows.shape[1] // _SEGMENT * _SEGMENT
        segments = torch.unflatten(rows[:, :whole], 1, (whole // _SEGMENT, _SEGMENT))
        norms = torch.linalg.vector_norm(segments, dim=2)
        rest = torch.linalg.vector_norm(rows[:, whole:], dim=1, keepdim=True)
        # A square below float32's smallest number is lost or rounded: an error of at most half of that number each.
        lost = rows.shape[1] * 2.0**-149
        return exact(norms).square().sum(1) + exact(rest).square().sum(1) + lost

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """sum_i weights[i] * row i, flat float64 on the CPU, in the parameter's order."""
        weights = weights.to(self.rows.device, self.rows.dtype)
        if self.rows.device.type == "cpu":
            return self.in_order((weights @ self.rows).double())
        # A GPU may multiply matrices in TF32, whose 10 bits would let an example exceed its bound.
        return self.in_order((self.rows * weights.unsqueeze(1)).sum(0).cpu().double())

    def forget(self, examples: Tensor) -> None:
        """Set these rows to zero, whatever they hold; `examples`: indices."""
        self.rows.index_fill_(0, examples.to(self.rows.device), 0.0)

    def dense(self) -> "Dense":
        """The same contribution with rows in the parameter's order."""
        if not self.stored:
            return self
        rows = torch.unflatten(self.rows, 1, tuple(self.stored)).permute(0, *(1 + axis for axis in self.axes))
        return Dense(self.parameter, rows.reshape(self.rows.shape))

    def in_order(self, flat: Tensor) -> Tensor:
        """One row, or a sum of rows, in the parameter's order."""
        return flat.view(*self.stored).permute(*self.axes).reshape(-1) if self.stored else flat


@dataclass
class Outer:
    """The gradient of example i is left[i] right[i]^T, for a parameter of shape (left columns, right columns).

    Its sums run on CPUs only: a GPU may multiply matrices in TF32, whose 10 bits would let an example exceed
    its bound.
    """

    parameter: nn.Parameter
    left: Tensor  # (n, rows of the parameter)
    right: Tensor  # (n, columns)
    _owned: bool = field(default=False, repr=False)
    _lengths: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def examples(self) -> int:
        return len(self.left)

    def squared_norms(self) -> Tensor:
        """float64 (n,), relative error at most 1e-13: all operations are float64."""
        left, right = self.lengths()
        return (left * right).square()

    def lengths(self) -> tuple[Tensor, Tensor]:
        """float64 (n,) norms of both factors, as they were at the first call."""
        if self._lengths is None:
            left, right = (torch.linalg.vector_norm(exact(factor), dim=1) for factor in (self.left, self.right))
            self._lengths = left, right
        return self._lengths

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """As for Dense. An example's part has two roundings of 2^-24, so it is as short as its weighted factors."""
        left = (self.left.double() * weights.unsqueeze(1)).to(self.left.dtype)
        return (left.T @ self.right).double().flatten()

    def forget(self, examples: Tensor) -> None:
        if not self._owned:  # the factors are activations and gradients that other code may still read
            self.left, self.right, self._owned = self.left.clone(), self.right.clone(), True
        for factor in (self.left, self.right):
            factor.index_fill_(0, examples.to(factor.device), 0.0)

    def dense(self) -> Dense:
        return Dense(self.parameter, (self.left.unsqueeze(2) * self.right.unsqueeze(1)).flatten(1))


Contribution = Dense | Outer


def exact(values: Tensor) -> Tensor:
    """The values in float64, on the CPU for devices without float64 (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def averaged(contributions: Sequence[Contribution], views: int) -> list[Contribution]:
    """The mean over the augmented copies of each example, `views` adjacent rows (De et al. 2022, arXiv:2204.13650)."""
    if views == 1:
        return list(contributions)
    rows = {c.parameter: c.dense().rows for c in contributions}
    return [Dense(p, of_views.view(-1, views, of_views.shape[1]).mean(1)) for p, of_views in rows.items()]


def merged(contributions: Sequence[Contribution]) -> list[Contribution]:
    """One contribution per parameter: if layers or calls share a parameter, gradients are added before any norm."""
    by_parameter: dict[nn.Parameter, Contribution] = {}
    for contribution in contributions:
        before = by_parameter.get(contribution.parameter)
        if before is not None:
            contribution = Dense(contribution.parameter, before.dense().rows + contribution.dense().rows)
        by_parameter[contribution.parameter] = contribution
    return list(by_parameter.values())
