"""Fake quantization: round to integer grids in the forward pass, straight-through in the backward pass.

Depends on tensors; does not know modules, Opacus or ONNX. Every rounding is half to even, and every division is a
division (not a product with the reciprocal), because onnxruntime's QuantizeLinear works so: the bits must be equal.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedq.quant import jit
from fedq.quant.weights import WeightFormat, parameter_levels

_NOTHING = np.empty(0, np.float32)


class _FakeQuantize(torch.autograd.Function):
    """The nearest grid value; the gradient passes where lowest < x / step < highest.

    The bounds are known integers even if the step is a tensor on another device.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float | Tensor, lowest: int, highest: int, slope: float) -> Tensor:
        ctx.levels, ctx.slope, ctx.step = (lowest, highest), slope, step if type(step) is float else None
        ctx.save_for_backward(x, *([] if ctx.step is not None else [step]))
        if type(step) is float and (kernels := _kernels(x)) is not None:
            out = torch.empty_like(x)
            kernels.fake_quantize(_flat(x), _flat(out), step, lowest, highest)
            return out
        return torch.div(x, step).round_().clamp_(lowest, highest).mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, *learned = ctx.saved_tensors
        (grad,) = grads
        lowest, highest = ctx.levels
        # A second-order gradient needs torch's own operations.
        if (
            not learned
            and not torch.is_grad_enabled()
            and grad.stride() == x.stride()
            and (kernels := _kernels(x, grad)) is not None
        ):
            passed = torch.empty_like(x)
            kernels.straight_through_gradient(_flat(grad), _flat(x), _flat(passed), ctx.step, lowest, highest)
            return passed, None, None, None, None
        units = torch.div(x, learned[0] if learned else ctx.step)
        passed = straight_through_gradient(grad, units, lowest, highest)
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None, None
        moved = step_gradient(grad, passed, units, lowest, highest).sum().mul_(ctx.slope)
        return passed, moved.view(1), None, None, None


class _FakeQuantizeInRange(torch.autograd.Function):
    """`_FakeQuantize` for values that cannot leave the range: it clamps, saves and masks nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float | Tensor) -> Tensor:
        if type(step) is float and (kernels := _kernels(x)) is not None:
            out = torch.empty_like(x)
            kernels.fake_quantize(_flat(x), _flat(out), step, -np.inf, np.inf)
            return out
        return torch.div(x, step).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _FakeQuantizeParameters(torch.autograd.Function):
    """Weight and bias on the grids of `parameter_levels`; the gradient of both is the identity."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        input_step: float | Tensor | None,
        form: WeightFormat,
        training: bool,
    ) -> tuple[Tensor, Tensor | None]:
        compilable = form.bits != 2 and not (training and form.rounding == "stochastic")
        if compilable and not isinstance(input_step, Tensor) and (kernels := _kernels(weight)) is not None:
            fake_quantized = torch.empty_like(weight)
            moved = None if bias is None else torch.empty_like(bias)
            flat_bias = (_NOTHING, _NOTHING) if bias is None or moved is None else (_flat(bias), _flat(moved))
            together = form.granularity == "tensor"
            kernels.fake_quantize_rows(
                _flat(weight), flat_bias[0], input_step or 0.0, form.largest, together, len(weight),
                _flat(fake_quantized), flat_bias[1],
            )  # fmt: skip
            return fake_quantized, moved
        levels, step, bias_levels, bias_step = parameter_levels(weight, bias, input_step, form, training=training)
        fake_quantized = levels.mul_(step)
        if bias_levels is None or bias_step is None:
            return fake_quantized, None if bias is None else bias.clone()
        return fake_quantized, bias_levels.mul_(bias_step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        return grads[0], grads[1], None, None, None


def _kernels(*tensors: Tensor) -> Any:
    """The compiled kernels if all tensors are plain float32 CPU arrays, else None."""
    x = tensors[0]
    if (
        torch.compiler.is_compiling()
        or x.numel() == 0
        or any(t.dtype is not torch.float32 or t.device.type != "cpu" for t in tensors)
        or not (x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)))
    ):
        return None
    return jit.kernels(x.numel())


def _flat(x: Tensor) -> np.ndarray:
    """All values of a dense tensor in memory order, as an array that shares the memory."""
    return x.detach().as_strided((x.numel(),), (1,)).numpy()


def straight_through_gradient(grad: Tensor, units: Tensor, lowest: int, highest: int) -> Tensor:
    """`grad` where lowest < units < highest, else zero; one fused pass."""
    return torch.ops.aten.hardtanh_backward(grad, units, lowest, highest)  # type: ignore[no-any-return]


def step_gradient(grad: Tensor, passed: Tensor, units: Tensor, lowest: int, highest: int) -> Tensor:
    """Each value's contribution to the gradient of the step (LSQ, Esser et al. 2020, eq. 3).

    `passed`: the result of `straight_through_gradient`. dy/dstep is round(units) - units inside the range, and lowest
    or highest outside. The two parts are summed separately, since the difference of their totals would lose the
    rounding errors.
    """
    clamped = units.clamp(lowest, highest)
    levels = clamped.round()
    return torch.sub(levels, clamped).mul_(grad).addcmul_(torch.sub(grad, passed), levels)


def fake_quantize(x: Tensor, step: float | Tensor, lowest: int, highest: int, *, slope: float = 1.0) -> Tensor:
    """x on the grid {lowest..highest} * step. If `step` is a tensor (1,), its gradient is multiplied by `slope`."""
    fake_quantized: Tensor = _applied(_FakeQuantize, x, step, lowest, highest, slope)
    return fake_quantized


def fake_quantize_in_range(x: Tensor, step: float | Tensor) -> Tensor:
    """x on the grid of multiples of `step`; x must be known to stay in range."""
    fake_quantized: Tensor = _applied(_FakeQuantizeInRange, x, step)
    return fake_quantized


def fake_quantize_parameters(
    weight: Tensor,
    bias: Tensor | None,
    input_step: float | Tensor | None,
    form: WeightFormat,
    *,
    training: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as the int8 kernel uses them, times their steps; the gradient is the identity."""
    fake_quantized: tuple[Tensor, Tensor | None] = _applied(
        _FakeQuantizeParameters, weight, bias, input_step, form, training
    )
    return fake_quantized


def _applied(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    apply: Callable[..., Any] = function.apply
    return apply(*arguments)
