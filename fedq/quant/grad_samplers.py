"""Register the exact per-example gradients of quantized layers with Opacus and with fedq's own recorder.

Does not know noise. A hook on a layer sees a quantized input and the gradient of the raw output (see `layers`), and the
gradient of parameter rounding is the identity. So the per-example gradients are those of the plain layers.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedq import per_example
from fedq.per_example import Contribution, Dense, layers
from fedq.per_example.layers import Sampler
from fedq.quant.attention import QMultiheadAttention
from fedq.quant.fake import step_gradient, straight_through_gradient
from fedq.quant.grids import LearnedGrid
from fedq.quant.layers import QConv1d, QConv2d, QEmbedding, QLinear
from fedq.quant.recurrent import QLSTM

_Samples = dict[nn.Parameter, Tensor]


def learned_grid(grid: nn.Module, x: Tensor, grad: Tensor) -> list[Contribution]:
    """Per-example gradients of `log_range`, one number for each example."""
    assert isinstance(grid, LearnedGrid)
    step, levels = grid.step, (grid.lowest, grid.highest)
    units = x / step
    moved = step_gradient(grad, straight_through_gradient(grad, units, *levels), units, *levels)
    # The step is exp(log_range) / highest, so its derivative with respect to log_range is the step itself.
    return [Dense(grid.log_range, moved.flatten(start_dim=1).sum(dim=1, keepdim=True) * (grid.slope(x) * step))]


_SAMPLERS: dict[type[nn.Module], Sampler] = {
    QLinear: layers.linear,
    QConv1d: layers.conv1d,
    QConv2d: layers.conv2d,
    QEmbedding: layers.embedding,
    LearnedGrid: learned_grid,
}


def register_grad_samplers() -> None:
    """Register every quantized layer and LearnedGrid. Calling it again has no effect."""
    from opacus.grad_sample import register_grad_sampler

    for kind, sampler in _SAMPLERS.items():
        per_example.register(kind, sampler)
        register_grad_sampler(kind)(_for_opacus(sampler))
    # Layers whose hooks run several times in one call: Opacus counts the runs.
    register_grad_sampler(QMultiheadAttention)(attention_grad_sample)
    register_grad_sampler(QLSTM)(lstm_grad_sample)


def _for_opacus(sampler: Sampler) -> Callable[[nn.Module, list[Tensor], Tensor], _Samples]:
    def samples(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> _Samples:
        found = [] if not _trained(layer) else sampler(layer, activations[0], backprops)
        return {c.parameter: c.dense().rows.view(c.examples, *c.parameter.shape) for c in found}

    return samples


def _trained(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters(recurse=False))


def attention_grad_sample(
    layer: QMultiheadAttention, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Per-example gradients of the packed input projection, or of a third of it."""
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
    """Per-example gradients of one step of one layer and direction; Opacus adds the steps."""
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
