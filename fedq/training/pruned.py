"""Weights that are zero and stay so while the others are trained. Knows tensors; not who prunes, or DP-SGD.

A gradient of zero leaves a zero weight where it is under SGD, momentum, weight decay and Adam, but an optimizer may mix
values of a matrix: so weights are put back to zero after each step too.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fedq.codec import Layout

Pruned = Mapping[nn.Parameter, torch.Tensor]  # parameter -> bool of its shape, True where it is zero


def pruned_in(model: nn.Module, layout: Layout, kept: np.ndarray | None) -> Pruned:
    """The parameters that hold pruned weights, all set to exactly 0.0; `kept`: bool (layout.size,), None: all."""
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
