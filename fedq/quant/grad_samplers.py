"""Teach Opacus the exact per-sample gradients of quantized layers. Knows Opacus; not its accounting."""

from torch import Tensor, nn
from torch.nn import functional

from fedq.quant.fake import pass_within, step_gradient
from fedq.quant.grids import LearnedGrid
from fedq.quant.layers import QConv2d, QLinear


def register_grad_samplers() -> None:
    """Register QLinear, QConv2d and LearnedGrid with Opacus; calling it again changes nothing.

    The layers' hooks see a quantized input and the gradient of the raw output (see `layers`), and the
    gradient of their parameters' rounding is the identity: the per-sample gradients of the plain layers are
    theirs.
    """
    from opacus.grad_sample import register_grad_sampler
    from opacus.grad_sample.linear import compute_linear_grad_sample

    register_grad_sampler(QLinear)(compute_linear_grad_sample)
    register_grad_sampler(QConv2d)(conv2d_grad_sample)
    register_grad_sampler(LearnedGrid)(learned_grid_grad_sample)


def conv2d_grad_sample(layer: QConv2d, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Gradients of each example's loss for weight and bias, shape (n, *parameter).

    Opacus' own sampler asks for the type nn.Conv2d itself, takes zero padding for granted and multiplies
    every group with every other; the algebra is the same: one matrix product per example of patches and
    gradients.
    """
    from opacus.utils.tensor_utils import unfold2d

    (x,) = activations
    n, groups = len(x), layer.groups
    samples: dict[nn.Parameter, Tensor] = {}
    if layer.weight.requires_grad and n == 0:  # unfold2d refuses that
        samples[layer.weight] = layer.weight.new_zeros((0, *layer.weight.shape))
    elif layer.weight.requires_grad:
        padding = layer.padding
        if layer.padding_mode != "zeros":
            x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            padding = (0, 0)
        # Opacus 1.6's unfold2d reads a channels_last tensor in the wrong order, without an error.
        patches = unfold2d(
            x.contiguous(),
            kernel_size=layer.kernel_size,
            padding=padding,
            stride=layer.stride,
            dilation=layer.dilation,
        )
        places = patches.shape[-1]
        patches = patches.reshape(n, groups, layer.weight[0].numel(), places)
        by_group = backprops.reshape(n, groups, layer.out_channels // groups, places)
        samples[layer.weight] = (by_group @ patches.transpose(2, 3)).reshape(n, *layer.weight.shape)
    if layer.bias is not None and layer.bias.requires_grad:
        samples[layer.bias] = backprops.sum(dim=(2, 3))
    return samples


def learned_grid_grad_sample(
    grid: LearnedGrid, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Gradient of each example's loss for `log_range`, shape (n, 1)."""
    if not grid.log_range.requires_grad:
        return {}
    (x,) = activations
    step, levels = grid.step, (grid.lowest, grid.highest)
    units = x / step
    moved = step_gradient(backprops, pass_within(backprops, units, *levels), units, *levels)
    # The step is exp(log_range) / highest, so its derivative for log_range is the step itself.
    return {grid.log_range: moved.flatten(start_dim=1).sum(dim=1, keepdim=True) * (grid.slope(x) * step)}
