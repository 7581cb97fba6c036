"""Add an algorithm's correction to the gradients of a local step. Depends on a model and its layout."""

import torch
from torch import Tensor, nn

from fedq.algorithms import Correction
from fedq.codec import Layout


class Corrected:
    """A function to call after each backward pass (under DP after the noise), before the optimizer's step.

    Averaged arrays that are not trained, such as running means, are part of the flat weights and get no correction.
    """

    def __init__(self, model: nn.Module, layout: Layout, correction: Correction) -> None:
        arrays: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._arrays = [arrays[segment.name] for segment in layout.averaged]
        self._sizes = [array.numel() for array in self._arrays]
        self._correction = correction

    def __call__(self) -> None:
        """Add the correction at the current weights to each parameter's `.grad`."""
        with torch.no_grad():
            flat = torch.cat([array.detach().reshape(-1).float() for array in self._arrays])
            for array, part in zip(self._arrays, torch.split(self._correction(flat), self._sizes), strict=True):
                if array.requires_grad:
                    part = part.view_as(array).to(array.dtype)
                    array.grad = part.clone() if array.grad is None else array.grad.add_(part)
