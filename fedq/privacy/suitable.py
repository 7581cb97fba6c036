"""Whether a model and a loss keep each example to itself, as DP-SGD needs: three checks.
Knows layers, buffers and a loss; not clipping, noise, budgets or data.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def refuse_cross_example_layers(model: nn.Module) -> None:
    """ValueError for a layer through which one example reaches another's gradient."""
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    for name, module in model.named_modules():
        tracks = isinstance(module, _InstanceNorm) and module.track_running_stats
        # _InstanceNorm derives from a common parent of _BatchNorm, not from it.
        if isinstance(module, _BatchNorm) or tracks:
            raise ValueError(
                f"layer {name or 'model'} is {type(module).__name__}: it mixes the examples of a "
                "batch, so no example's share can be bounded; use GroupNorm in its place, or privacy=off"
            )


def refuse_channels_last(model: nn.Module) -> None:
    """ValueError for a plain convolution in channels_last: Opacus 1.6 unfolds it wrongly, and says nothing."""
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d and not module.weight.is_contiguous():
            raise ValueError(
                f"layer {name or 'model'} is in channels_last format, where Opacus' per-example gradients of Conv2d "
                "are wrong; use model.to(memory_format=torch.contiguous_format)"
            )


def check_loss_sums(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> None:
    """ValueError if two equal made-up examples do not lose twice what one does; sees shapes, not data."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            output = model(torch.zeros((1, *inputs.shape[1:]), dtype=inputs.dtype))
            target = torch.zeros((1, *targets.shape[1:]), dtype=targets.dtype)
            one = loss(output, target)
            two = loss(torch.cat([output, output]), torch.cat([target, target]))
    finally:
        for module, training in was_training.items():
            module.training = training
    if one.dim() or not torch.isclose(two, 2 * one, rtol=1e-3, atol=1e-12):
        raise ValueError(
            f"the loss of two equal examples is {two.tolist()}, of one {one.tolist()}: under DP the loss "
            "must SUM over the batch (in a mean each example's share depends on others); use reduction='sum'"
        )


def check_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    """A buffer that moved during training holds statistics of the data, which no noise covers."""
    for name, buffer in model.named_buffers():
        if name not in before or not torch.equal(buffer, before[name]):
            raise ValueError(
                f"buffer {name} changed during private training: it holds what it saw of the data, "
                "without noise; use GroupNorm, or quant.activations=learned or fixed"
            )
