"""Teach Opacus the exact per-sample gradients of quantized layers. Knows Opacus; not its accounting."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq.quant.attention import QMultiheadAttention
from fedq.quant.fake import pass_within, step_gradient
from fedq.quant.grids import LearnedGrid
from fedq.quant.layers import QConv1d, QConv2d, QEmbedding, QLinear
from fedq.quant.recurrent import QLSTM


def register_grad_samplers() -> None:
    """Register every quantized layer and LearnedGrid with Opacus; calling it again changes nothing.

    The layers' hooks see a quantized input and the gradient of the raw output (see `layers`), and the
    gradient of their parameters' rounding is the identity: the per-sample gradients of the plain layers are
    theirs.
    """
    from opacus.grad_sample import register_grad_sampler
    from opacus.grad_sample.linear import compute_linear_grad_sample

    register_grad_sampler(QLinear)(compute_linear_grad_sample)
    register_grad_sampler(QConv1d)(conv1d_grad_sample)
    register_grad_sampler(QConv2d)(conv2d_grad_sample)
    register_grad_sampler(QEmbedding)(embedding_grad_sample)
    register_grad_sampler(QMultiheadAttention)(attention_grad_sample)
    register_grad_sampler(QLSTM)(lstm_grad_sample)
    register_grad_sampler(LearnedGrid)(learned_grid_grad_sample)


def embedding_grad_sample(
    layer: QEmbedding, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Opacus' own, without a gradient for the row that pads."""
    from opacus.grad_sample.embedding import compute_embedding_grad_sample

    samples: dict[nn.Parameter, Tensor] = compute_embedding_grad_sample(layer, activations, backprops)
    if layer.padding_idx is not None:
        for sample in samples.values():
            sample[:, layer.padding_idx] = 0.0
    return samples


def conv2d_grad_sample(layer: QConv2d, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Gradients of each example's loss for weight and bias, shape (n, *parameter).

    Opacus' own sampler asks for the type nn.Conv2d itself, takes zero padding for granted and multiplies
    every group with every other; the algebra is the same: one matrix product per example of patches and
    gradients.
    """
    (x,) = activations
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0, 0)
    shape = (layer.kernel_size, padding, layer.stride, layer.dilation)
    return _conv_grad_sample(layer, x, backprops, *shape)


def conv1d_grad_sample(layer: QConv1d, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """The same for images of height 1."""
    (x,) = activations
    padding: tuple[int, ...] | str = layer.padding
    if layer.padding_mode != "zeros":
        x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0,)
    high: tuple[int, ...] | str = padding if isinstance(padding, str) else (0, *padding)
    shape = ((1, *layer.kernel_size), high, (1, *layer.stride), (1, *layer.dilation))
    return _conv_grad_sample(layer, x.unsqueeze(2), backprops.unsqueeze(2), *shape)


def _conv_grad_sample(
    layer: QConv1d | QConv2d, x: Tensor, backprops: Tensor, kernel_size: tuple[int, ...],
    padding: tuple[int, ...] | str, stride: tuple[int, ...], dilation: tuple[int, ...],
) -> dict[nn.Parameter, Tensor]:  # fmt: skip
    from opacus.utils.tensor_utils import unfold2d

    n, groups, weight, bias = len(x), layer.groups, layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    samples: dict[nn.Parameter, Tensor] = {}
    if weight.requires_grad and n == 0:  # unfold2d refuses that
        samples[weight] = weight.new_zeros((0, *weight.shape))
    elif weight.requires_grad:
        # Opacus 1.6's unfold2d reads a channels_last tensor in the wrong order, without an error.
        patches = unfold2d(x.contiguous(), kernel_size=kernel_size, padding=padding, stride=stride, dilation=dilation)
        places = patches.shape[-1]
        patches = patches.reshape(n, groups, weight[0].numel(), places)
        by_group = backprops.reshape(n, groups, layer.out_channels // groups, places)
        samples[weight] = (by_group @ patches.transpose(2, 3)).reshape(n, *weight.shape)
    if isinstance(bias, nn.Parameter) and bias.requires_grad:
        samples[bias] = backprops.sum(dim=(2, 3))
    return samples


def attention_grad_sample(
    layer: QMultiheadAttention, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Of the packed input projection, or of a third of it; the output projection is a layer of its own."""
    part, x = activations
    rows = layer.rows(int(part))
    samples: dict[nn.Parameter, Tensor] = {}
    weight, bias = layer.in_proj_weight, layer.in_proj_bias
    if isinstance(weight, nn.Parameter) and weight.requires_grad:
        samples[weight] = _in_rows(weight, rows, backprops.transpose(1, 2) @ x)
    if isinstance(bias, nn.Parameter) and bias.requires_grad:
        samples[bias] = _in_rows(bias, rows, backprops.sum(dim=1))
    return samples


def _in_rows(parameter: Tensor, rows: slice, sample: Tensor) -> Tensor:
    if sample.shape[1:] == parameter.shape:
        return sample
    whole = sample.new_zeros((len(sample), *parameter.shape))
    whole[:, rows] = sample
    return whole


def lstm_grad_sample(layer: QLSTM, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Of one step of one layer and direction; Opacus adds up the steps."""
    samples: dict[nn.Parameter, Tensor] = {}
    which, *operands = activations
    for product, x in zip(layer.products_of(*which.tolist()), operands, strict=True):
        weight: nn.Parameter = getattr(layer, product.weight)
        if weight.requires_grad:
            samples[weight] = torch.einsum("ni,nj->nij", backprops, x)
        bias: nn.Parameter | None = None if product.bias is None else getattr(layer, product.bias)
        if bias is not None and bias.requires_grad:
            samples[bias] = backprops
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
