"""Map weights to integers: 8 or 4 bits or ternary, one step per channel or tensor. Depends on tensors only."""

from dataclasses import dataclass

import torch
from torch import Tensor

# An int32 accumulator starts at the bias; half of its range is reserved for the products.
_BIAS_LEVELS = 2.0**30
# The smallest step for which 1 / step and step * step are finite in float32; an all-zero channel gets it.
_SMALLEST_STEP = 2.0**-60
# Fraction of the mean magnitude below which a weight becomes 0 (Li et al. 2016, arXiv:1605.04711, eq. 6).
_TERNARY_THRESHOLD = 0.7

LARGEST_LEVEL = {8: 63, 4: 7, 2: 1}  # bits -> largest level; 63 is exact on every processor
GRANULARITIES = ("channel", "tensor")
ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class WeightFormat:
    """The integer format of a weight. ValueError for options that are not supported."""

    bits: int = 8
    granularity: str = "channel"  # channel: the output channel, axis 0 of the weight
    rounding: str = "nearest"  # in training; the export rounds to nearest
    limit: int | None = None  # largest level; None: the default for the bits

    def __post_init__(self) -> None:
        if self.bits not in LARGEST_LEVEL:
            raise ValueError(f"weights={self.bits}: must be 8, 4 or 2 (ternary) bits; use weights=8")
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity={self.granularity!r}: must be channel or tensor; use granularity=channel")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding={self.rounding!r}: must be nearest or stochastic; use rounding=nearest")
        if self.limit is not None and self.bits != 8:
            raise ValueError(f"weight_range={self.limit}: is for 8-bit weights; leave it out with weights={self.bits}")
        if not 1 <= self.largest <= 127:
            raise ValueError(f"quant.weight_range={self.limit}: must be 1..127; try 63")

    @property
    def largest(self) -> int:
        """The largest level; levels are -largest..largest."""
        return LARGEST_LEVEL[self.bits] if self.limit is None else self.limit

    @property
    def portable(self) -> bool:
        """Whether int8 kernels are exact on every processor.

        x86 without VNNI adds two products of uint8 and int8 in 16 bits with saturation, so 2 * 255 * 64 is the limit.
        """
        return 2 * 255 * self.largest <= 2**15 - 1

    def describe(self) -> str:
        """A short text for reports, such as `int8 weights`."""
        name = {8: "int8", 4: "int4", 2: "ternary"}[self.bits]
        return f"{name} weights" + ("" if self.granularity == "channel" else ", one step")


def parameter_levels(
    weight: Tensor,
    bias: Tensor | None,
    input_step: float | Tensor | None,
    form: WeightFormat,
    *,
    training: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(weight levels, step per output channel, bias levels, bias step); levels are whole numbers as float32.

    Weight (out, ...) is symmetric about 0; the step has shape (out, 1, ...). The bias is on the grid of the int32
    sums, input_step * step. `input_step=None` (float activations): no bias levels.
    """
    levels, step = _ternary(weight, form) if form.bits == 2 else (None, _uniform_step(weight, form))
    if bias is not None and input_step is not None:
        # A channel with (almost) zero weights may have a large bias: its step grows until the bias fits in int32.
        least = (bias.abs() / (input_step * _BIAS_LEVELS)).view(step.shape)
        step = torch.maximum(step, least)
        if form.granularity == "tensor":
            step = step.amax(dim=0, keepdim=True).expand(step.shape)
    if levels is None:
        levels = torch.div(weight, step)
        if training and form.rounding == "stochastic":
            # floor(x + u) is the integer above x with probability frac(x); at the ends it stays in range.
            levels = levels.add_(torch.rand_like(levels)).floor_().clamp_(-form.largest, form.largest)
        else:
            levels.round_()
    if bias is None or input_step is None:
        return levels, step, None, None
    bias_step = step.flatten() * input_step
    return levels, step, torch.div(bias, bias_step).round_(), bias_step


def _uniform_step(weight: Tensor, form: WeightFormat) -> Tensor:
    """The step for which the largest magnitude is the largest level."""
    step = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
    if form.granularity == "tensor":
        step = step.amax(dim=0, keepdim=True).expand(step.shape)
    return (step / form.largest).clamp_min_(_SMALLEST_STEP)


def _ternary(weight: Tensor, form: WeightFormat) -> tuple[Tensor, Tensor]:
    """Levels -1, 0, 1; the step is the mean magnitude of the weights that are not 0 (Li et al. 2016)."""
    rest = tuple(range(0 if form.granularity == "tensor" else 1, weight.dim()))
    magnitude = weight.abs()
    # Weights that pruning set to 0 do not count in the mean, since sparsity would lower the threshold.
    present = (magnitude > 0).sum(dim=rest, keepdim=True).clamp_min(1)
    kept = magnitude > _TERNARY_THRESHOLD * magnitude.sum(dim=rest, keepdim=True) / present
    step = (magnitude * kept).sum(dim=rest, keepdim=True) / kept.sum(dim=rest, keepdim=True).clamp_min(1)
    step = step.clamp_min(_SMALLEST_STEP).expand(len(weight), *[1] * (weight.dim() - 1))
    return torch.sign(weight) * kept, step
