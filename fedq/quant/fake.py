"""Round values to an int8 grid in the forward pass, straight through in the backward pass. Knows tensors.

Knows no modules, Opacus or ONNX. Every rounding is half to even, and every division is a division (not a
product with the reciprocal), because that is what onnxruntime's QuantizeLinear does: the bits shall agree.
"""

from typing import Any

import torch
from torch import Tensor

# An int32 accumulator starts from the bias. Half its range is left for the products.
_BIAS_LEVELS = 2.0**30
# Smallest step that keeps 1 / step and step * step finite in float32; an all-zero channel gets it.
_SMALLEST_STEP = 2.0**-60


class _Snap(torch.autograd.Function):
    """Nearest grid value; the gradient passes where lowest < x / step < highest.

    Only x / step is kept, so the bounds are known integers even where the step is a tensor on another device.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float | Tensor, lowest: int, highest: int, slope: float) -> Tensor:
        units = torch.div(x, step)
        ctx.save_for_backward(units)
        ctx.levels, ctx.slope = (lowest, highest), slope
        return torch.round(units).clamp_(lowest, highest).mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (units,) = ctx.saved_tensors
        passed = pass_within(grads[0], units, *ctx.levels)
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None, None
        moved = step_gradient(grads[0], passed, units, *ctx.levels).sum().mul_(ctx.slope)
        return passed, moved.view(1), None, None, None


class _SnapWithin(torch.autograd.Function):
    """`_Snap` for values that cannot leave the range: nothing to clamp, to save or to mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float) -> Tensor:
        return torch.div(x, step).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _SnapParameters(torch.autograd.Function):
    """Weight and bias on the grids of `parameter_levels`; the gradient of both is the identity."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, input_step: float | Tensor | None, weight_range: int
    ) -> tuple[Tensor, Tensor | None]:
        levels, step, bias_levels, bias_step = parameter_levels(weight, bias, input_step, weight_range)
        snapped = levels.mul_(step)
        if bias_levels is None or bias_step is None:
            return snapped, None if bias is None else bias.clone()
        return snapped, bias_levels.mul_(bias_step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        return grads[0], grads[1], None, None


def pass_within(grad: Tensor, units: Tensor, lowest: int, highest: int) -> Tensor:
    """The gradient where lowest < units < highest, else zero; one fused pass."""
    return torch.ops.aten.hardtanh_backward(grad, units, lowest, highest)  # type: ignore[no-any-return]


def step_gradient(grad: Tensor, passed: Tensor, units: Tensor, lowest: int, highest: int) -> Tensor:
    """Each value's share of the gradient for the step (Esser et al. 2020, eq. 3); `passed`: from
    `pass_within`.

    dy/dstep is round(units) - units inside the range and lowest or highest outside. The two are summed apart,
    since the difference of their totals would lose what the rounding errors say.
    """
    clamped = units.clamp(lowest, highest)
    levels = clamped.round()
    return torch.sub(levels, clamped).mul_(grad).addcmul_(torch.sub(grad, passed), levels)


def snap(x: Tensor, step: float | Tensor, lowest: int, highest: int, *, slope: float = 1.0) -> Tensor:
    """x on the grid {lowest..highest} * step; a tensor `step` (1,) gets `slope` times its gradient."""
    return _Snap.apply(x, step, lowest, highest, slope)  # type: ignore[no-untyped-call,no-any-return]


def snap_within(x: Tensor, step: float) -> Tensor:
    """x on the grid of multiples of `step`; for x that is known to stay in range."""
    return _SnapWithin.apply(x, step)  # type: ignore[no-untyped-call,no-any-return]


def snap_parameters(
    weight: Tensor, bias: Tensor | None, input_step: float | Tensor | None, weight_range: int
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as the int8 kernel sees them, times their steps; identity for gradients."""
    return _SnapParameters.apply(  # type: ignore[no-untyped-call,no-any-return]
        weight, bias, input_step, weight_range
    )


def parameter_levels(
    weight: Tensor, bias: Tensor | None, input_step: float | Tensor | None, weight_range: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(weight levels, step per output channel, bias levels, bias step), levels as float32 whole numbers.

    Weight (out, ...) is symmetric: step = absmax / weight_range over a channel. The bias lies on the grid
    of the int32 sums, input_step * step. `input_step` None (float activations): no bias levels.
    """
    step = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
    step.div_(weight_range).clamp_min_(_SMALLEST_STEP)
    if bias is None or input_step is None:
        return torch.div(weight, step).round_(), step, None, None
    # A channel of (almost) zero weights may have a large bias: its step grows until the bias fits int32.
    step = torch.maximum(step, (bias.abs() / (input_step * _BIAS_LEVELS)).view(step.shape))
    bias_step = step.flatten() * input_step
    return torch.div(weight, step).round_(), step, torch.div(bias, bias_step).round_(), bias_step
