"""The integer grid of one activation: fixed, learned, observed or dynamic. Depends on torch modules.

Does not know layers, Opacus or ONNX. A signed grid of 8 bits has levels -128..127, and its range is 127 levels on each
side: ONNX's QuantizeLinear saturates at -128, and training must saturate where the exported model does. A non-negative
grid, as after ReLU, has levels 0..255. With 4 bits the levels are -8..7 and 0..15.
"""

import math

import torch
from torch import Tensor, nn

from fedq.quant.fake import fake_quantize, fake_quantize_in_range

_MOMENTUM = 0.1  # weight of a batch's maximum in an observed range, as in torch's BatchNorm


def _float32(value: float) -> float:
    """Round to float32, because ONNX stores a scale as float32."""
    return torch.tensor(value, dtype=torch.float32).item()


class Grid(nn.Module):
    """The grid of one activation, over [0, range] or [-range, range]."""

    def __init__(self, *, signed: bool, bits: int = 8) -> None:
        super().__init__()
        self.signed, self.bits = signed, bits
        self.lowest: int = -(2 ** (bits - 1)) if signed else 0
        self.highest: int = self.lowest + 2**bits - 1

    @property
    def zero_point(self) -> int:
        """The uint8 level of the value 0, with 8 bits and with 4."""
        return 128 if self.signed else 0

    @property
    def step(self) -> float | Tensor:
        """The difference between two adjacent levels."""
        raise NotImplementedError

    @property
    def bias_step(self) -> float | Tensor | None:
        """`step`, for the bias of a layer that reads this grid; None if it differs between examples."""
        return self.step

    def describe(self) -> str:
        """A short text for reports, such as `[-4, 4] fixed`."""
        top = float(self.step) * self.highest
        return f"[{-top if self.signed else 0:g}, {top:.4g}] {self.kind}{self._width}"

    @property
    def _width(self) -> str:
        return "" if self.bits == 8 else f" {self.bits}-bit"

    kind = "abstract"

    def extra_repr(self) -> str:
        return self.describe()


class FixedGrid(Grid):
    """A grid with a public constant range. `bounded`: the values cannot leave the range (tanh), so nothing clamps."""

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
            return fake_quantize_in_range(x, self._step)
        return fake_quantize(x, self._step, self.lowest, self.highest)


class LearnedGrid(Grid):
    """A grid with a range that is trained with the weights (LSQ, Esser et al. 2020), stored as its logarithm.

    The logarithm keeps the range positive whatever noise DP adds. The gradient is divided by sqrt(values per
    example): this is LSQ's factor without the number of levels, which the logarithm already accounts for.
    """

    kind = "learned"

    def __init__(self, limit: float, *, signed: bool, bits: int = 8) -> None:
        super().__init__(signed=signed, bits=bits)
        # Shape (1,), not (): Opacus' per-sample gradients and flat vectors need at least one dimension.
        self.log_range = nn.Parameter(torch.tensor([math.log(limit)], dtype=torch.float32))

    @property
    def step(self) -> Tensor:
        return self.log_range.detach().exp() / self.highest

    def slope(self, x: Tensor) -> float:
        """Factor on the gradient of the step. It depends on one example's shape only, not on the batch size."""
        return 1 / math.sqrt(max(x.shape[1:].numel(), 1))

    def forward(self, x: Tensor) -> Tensor:
        step = self.log_range.exp() / self.highest
        return fake_quantize(x, step, self.lowest, self.highest, slope=self.slope(x))


class ObservedGrid(Grid):
    """A grid whose range follows the data in training mode and is frozen in eval mode. Not private under DP.

    It starts from the public constant instead of the first batch, so that clients that average the range
    after a few steps start from the same value.
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
        return fake_quantize(x, self.step, self.lowest, self.highest)

    def _observe(self, x: Tensor) -> None:
        least, most = x.aminmax()
        extreme = torch.maximum(-least, most) if self.signed else most
        # A batch that is all zero or not finite does not change the range.
        usable = torch.isfinite(extreme) & (extreme > 0)
        self.range.lerp_(torch.where(usable, extreme, self.range), _MOMENTUM)


class DynamicGrid(Grid):
    """A grid with a range for each example, computed in each call and never stored. It is for training: int8 kernels
    use one step for all examples, so `calibration.with_fixed_ranges` replaces it before an export.
    """

    kind = "dynamic"

    def __init__(self, limit: float, *, signed: bool, bits: int = 8) -> None:
        super().__init__(signed=signed, bits=bits)
        self.limit = limit  # the range where no other is known; not used in training
        self.seen: float | None = None  # largest value since calibration began; None: no calibration

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
            return fake_quantize_in_range(x, step)
        return fake_quantize(x, step, self.lowest, self.highest)


RANGES: dict[str, type[FixedGrid] | type[LearnedGrid] | type[ObservedGrid] | type[DynamicGrid]] = {
    "fixed": FixedGrid,
    "learned": LearnedGrid,
    "observed": ObservedGrid,
    "dynamic": DynamicGrid,
}
