"""Keep pruned weights at zero while the others are trained. Depends on tensors; not on who prunes, or on DP-SGD.

With a zero gradient, a zero weight stays zero under SGD, momentum, weight decay and Adam. But an optimizer may mix the
values of a matrix, so the weights are set to zero after each step too.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fedq.codec import Layout

Pruned = Mapping[nn.Parameter, torch.Tensor]  # parameter -> bool of its shape, True where it is zero


def pruned_in(model: nn.Module, layout: Layout, kept: np.ndarray | None) -> Pruned:
    """Set pruned weights to 0.0 and return their parameters; `kept`: bool (layout.size,), None: nothing is pruned."""
    if kept is None:
        return {}
    parameters, pruned = dict(model.named_parameters()), {}
    for segment, start in zip(layout.averaged, layout.offsets, strict=True):
        part = kept[start : start + segment.size]
        if not part.all():
            parameter = parameters[segment.name]
            pruned[parameter] = torch.from_numpy(~part.reshape(segment.shape)).to(parameter.device)
    zero_weights(pruned)
    return pruned


def zero_gradients(pruned: Pruned) -> None:
    for parameter, zeros in pruned.items():
        if parameter.grad is not None:
            parameter.grad.masked_fill_(zeros, 0.0)


def zero_weights(pruned: Pruned) -> None:
    with torch.no_grad():
        for parameter, zeros in pruned.items():
            parameter.masked_fill_(zeros, 0.0)
