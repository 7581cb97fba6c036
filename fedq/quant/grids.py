"""Where the integer grid of one activation comes from: fixed, learned, observed or dynamic. Knows torch modules.

Knows no layers, Opacus or ONNX. A signed grid of 8 bits has levels -128..127, of which the range counts 127 to each
side: ONNX's QuantizeLinear saturates at -128, and what saturates in the delivered model must do so in
training. A non-negative grid, as after ReLU, has levels 0..255. With 4 bits they are -8..7 and 0..15.
"""

import math

import torch
from torch import Tensor, nn

from fedq.quant.fake import snap, snap_within

_MOMENTUM = 0.1  # share of a batch's extreme in an observed range, as in torch's BatchNorm


def _float32(value: float) -> float:
    """Rounded to float32, since that is how ONNX stores a scale."""
    return torch.tensor(value, dtype=torch.float32).item()


class Grid(nn.Module):
    """One activation's grid: [0, range] or [-range, range]."""

    def __init__(self, *, signed: bool, bits: int = 8) -> None:
        super().__init__()
        self.signed, self.bits = signed, bits
        self.lowest: int = -(2 ** (bits - 1)) if signed else 0
        self.highest: int = self.lowest + 2**bits - 1

    @property
    def zero_point(self) -> int:
        """The uint8 level that stands for 0, with 8 bits and with 4."""
        return 128 if self.signed else 0

    @property
    def step(self) -> float | Tensor:
        """Value of one level."""
        raise NotImplementedError

    @property
    def bias_step(self) -> float | Tensor | None:
        """`step`, for the bias of a layer that reads this grid; None: it differs between examples."""
        return self.step

    def describe(self) -> str:
        """As `[-4, 4] fixed`, for reports."""
        top = float(self.step) * self.highest
        return f"[{-top if self.signed else 0:g}, {top:.4g}] {self.kind}{self._width}"

    @property
    def _width(self) -> str:
        return "" if self.bits == 8 else f" {self.bits}-bit"

    kind = "abstract"

    def extra_repr(self) -> str:
        return self.describe()


class FixedGrid(Grid):
    """A public constant. `bounded`: the values cannot leave the range (tanh), so nothing clamps."""

    kind = "fixed"

    def __init__(self, limit: float, *, signed: bool, bounded: bool = False, bits: int = 8) -> None:
        super().__init__(signed=signed, bits=bits)
        self._step = _float32(limit / self.highest)
        self.bounded = bounded

    @property
    def step(self) -> float:
        return self._step

    def forward(self, x: Tensor) -> Tensor:
        if self.bounded:
            return snap_within(x, self._step)
        return snap(x, self._step, self.lowest, self.highest)


class LearnedGrid(Grid):
    """A range trained with the weights (LSQ, Esser et al. 2020), stored as its logarithm.

    The logarithm keeps the range positive whatever noise DP adds. The gradient is divided by sqrt(values per
    example), LSQ's factor without its number of levels, which the logarithm has already taken in.
    """

    kind = "learned"

    def __init__(self, limit: float, *, signed: bool, bits: int = 8) -> None:
        super().__init__(signed=signed, bits=bits)
        # Shape (1,), not (): Opacus' per-sample gradients and flat vectors want at least one dimension.
        self.log_range = nn.Parameter(torch.tensor([math.log(limit)], dtype=torch.float32))

    @property
    def step(self) -> Tensor:
        return self.log_range.detach().exp() / self.highest

    def slope(self, x: Tensor) -> float:
        """Factor on the gradient of the step; of one example's shape, so that a batch does not change it."""
        return 1 / math.sqrt(max(x.shape[1:].numel(), 1))

    def forward(self, x: Tensor) -> Tensor:
        step = self.log_range.exp() / self.highest
        return snap(x, step, self.lowest, self.highest, slope=self.slope(x))


class ObservedGrid(Grid):
    """A range that follows the data in training mode and is frozen in eval mode. Leaks under DP: not private.

    It starts from the public constant rather than from the first batch, so that clients which average it
    after a few steps agree on the start.
    """

    kind = "observed"
    range: Tensor

    def __init__(self, limit: float, *, signed: bool, bits: int = 8) -> None:
        super().__init__(signed=signed, bits=bits)
        self.register_buffer("range", torch.tensor([limit], dtype=torch.float32))

    @property
    def step(self) -> Tensor:
        return self.range / self.highest

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel():
            self._observe(x.detach())
        return snap(x, self.step, self.lowest, self.highest)

    def _observe(self, x: Tensor) -> None:
        least, most = x.aminmax()
        extreme = torch.maximum(-least, most) if self.signed else most
        # A batch that is all zero or not finite says nothing about the range.
        usable = torch.isfinite(extreme) & (extreme > 0)
        self.range.lerp_(torch.where(usable, extreme, self.range), _MOMENTUM)


class DynamicGrid(Grid):
    """A range of each example's own, found anew each time and kept nowhere. For training: int8 kernels take one step
    for all examples, so `calibration.with_fixed_ranges` takes its place before an export.
    """

    kind = "dynamic"

    def __init__(self, limit: float, *, signed: bool, bits: int = 8) -> None:
        super().__init__(signed=signed, bits=bits)
        self.limit = limit  # of no use in training: where the range is not known otherwise
        self.seen: float | None = None  # largest value since calibration began; None: nobody asked

    @property
    def step(self) -> float:
        return _float32(self.limit / self.highest)

    @property
    def bias_step(self) -> None:
        return None

    def describe(self) -> str:
        return f"{'signed' if self.signed else 'non-negative'} dynamic{self._width}"

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            magnitude = x.abs() if self.signed else x
            top = magnitude.amax(dim=tuple(range(1, x.dim())), keepdim=True) if x.numel() else x.new_ones(())
            if self.seen is not None and x.numel():
                self.seen = max(self.seen, float(top.max()))
            step = (top / self.highest).clamp_min_(2.0**-60)
        if self.signed:
            return snap_within(x, step)
        return snap(x, step, self.lowest, self.highest)


RANGES: dict[str, type[FixedGrid] | type[LearnedGrid] | type[ObservedGrid] | type[DynamicGrid]] = {
    "fixed": FixedGrid,
    "learned": LearnedGrid,
    "observed": ObservedGrid,
    "dynamic": DynamicGrid,
}
