"""Loss and gradients of one batch: on one device, split over several, compiled, or in bfloat16. Knows a model.

Not optimizers, data, rounds or privacy: DP-SGD has a step of its own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedq.quant.grids import Grid
from fedq.training.hardware import Hardware
from fedq.training.objectives import Loss

AUTOCAST: dict[str, torch.dtype | None] = {"off": None, "bf16": torch.bfloat16}


class Step:
    """The training step of one model, which stays where it is: on the first device of `hardware`."""

    def __init__(self, model: nn.Module, loss: Loss, hardware: Hardware, *, full: int, autocast: str = "off") -> None:
        """`full`: examples of a full batch; only such a one is compiled."""
        self.model, self.hardware, self.full = model, hardware, full
        self._loss, self._autocast = loss, AUTOCAST[autocast]
        self._compiled: Callable[[Tensor, Tensor], Tensor] | None = None
        if self._autocast is not None:
            _keep_grids_in_float32(model)

    def backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Add the gradient of the batch's mean loss to the model's `.grad`; the loss, on the first device."""
        first, *others = self.hardware.devices
        if others:
            return self._split(inputs, targets)
        loss = self._forward(len(inputs))(inputs.to(first), targets.to(first))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _split(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Each device its part of the batch. The mean of a part counts by its examples, so parts may differ in size.

        Layers that look at the whole batch (BatchNorm, observed ranges) see their part of it, as under
        nn.DataParallel, and keep what the first part told them.
        """
        devices, n = self.hardware.devices, len(inputs)
        losses = []
        for i, (x, y) in enumerate(zip(inputs.chunk(len(devices)), targets.chunk(len(devices)), strict=True)):
            forward = self._mean_loss if i == 0 else self._replica(devices[i])
            losses.append(forward(x.to(devices[i]), y.to(devices[i])) * (len(x) / n))
        # One call: autograd has a thread for each device, so their backward passes run side by side.
        torch.autograd.backward(losses)
        return torch.stack([loss.detach().to(devices[0]) for loss in losses]).sum()

    def _replica(self, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """The same module on copies of its arrays. Copying is differentiable, so gradients come back by themselves."""
        arrays = {name: p.to(device) for name, p in self.model.named_parameters()}
        arrays |= {name: b.to(device, copy=True) for name, b in self.model.named_buffers()}
        return lambda x, y: self._mean_loss(x, y, arrays)

    def _forward(self, examples: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Compiled for full batches alone: an odd last one is not worth half a minute of compiling."""
        if not self.hardware.compiled or examples != self.full:
            return self._mean_loss
        if self._compiled is None:
            self._compiled = torch.compile(self._mean_loss, dynamic=False)
        return self._compiled

    def _mean_loss(self, inputs: Tensor, targets: Tensor, arrays: dict[str, Tensor] | None = None) -> Tensor:
        with self._precision(inputs.device):
            outputs = self.model(inputs) if arrays is None else functional_call(self.model, arrays, (inputs,))
        return self._loss(outputs if self._autocast is None else outputs.float(), targets).mean()

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if self._autocast is None else torch.autocast(device.type, dtype=self._autocast)


def _keep_grids_in_float32(model: nn.Module) -> None:
    """Autocast's products come out in bfloat16, whose 8 bits cannot tell all levels of a grid from each other."""
    for module in model.modules():
        if isinstance(module, Grid):
            module.register_forward_pre_hook(_widened)


def _widened(grid: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x for x in inputs)
