"""Loss and gradients of one batch: on one device, split over several, compiled, or in bfloat16. Knows a model.

Not optimizers, data, rounds or privacy: DP-SGD has a step of its own.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedq.core.seeding import seeded
from fedq.quant.grids import Grid
from fedq.training.hardware import Hardware
from fedq.training.objectives import Loss

MeanLoss = Callable[[Tensor, Tensor], Tensor]
_DISAGREES = "this torch compiles the model to other gradients than its own eager ones, so steps are not compiled"
# Sums in another order move a few activations over the edge of a level: up to 1 % of a small batch's gradient.
_TOLERANCE = 0.1
AUTOCAST: dict[str, torch.dtype | None] = {"off": None, "bf16": torch.bfloat16}


class Step:
    """The training step of one model, which stays where it is: on the first device of `hardware`."""

    def __init__(self, model: nn.Module, loss: Loss, hardware: Hardware, *, full: int, autocast: str = "off") -> None:
        """`full`: examples of a full batch; only such a one is compiled."""
        self.model, self.hardware, self.full = model, hardware, full
        self._loss, self._autocast = loss, AUTOCAST[autocast]
        self._compiled: MeanLoss | None = None
        if self._autocast is not None:
            _keep_grids_in_float32(model)

    def backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Add the gradient of the batch's mean loss to the model's `.grad`; the loss, on the first device."""
        first, *others = self.hardware.devices
        if others:
            return self._split(inputs, targets)
        inputs, targets = inputs.to(first), targets.to(first)
        loss = self._forward(inputs, targets)(inputs, targets)
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

    def _replica(self, device: torch.device) -> MeanLoss:
        """The same module on copies of its arrays. Copying is differentiable, so gradients come back by themselves."""
        arrays = {name: p.to(device) for name, p in self.model.named_parameters()}
        arrays |= {name: b.to(device, copy=True) for name, b in self.model.named_buffers()}
        return lambda x, y: self._mean_loss(x, y, arrays)

    def _forward(self, inputs: Tensor, targets: Tensor) -> MeanLoss:
        """Compiled for full batches alone: an odd last one is not worth half a minute of compiling."""
        if not self.hardware.compiled or len(inputs) != self.full:
            return self._mean_loss
        if self._compiled is None:
            compiled = torch.compile(self._mean_loss, dynamic=False)
            agrees = agree(self.model, self._mean_loss, compiled, inputs, targets)
            self._compiled = compiled if agrees else self._mean_loss
            if not agrees:
                warnings.warn("train.compile: " + _DISAGREES, stacklevel=2)
        return self._compiled

    def _mean_loss(self, inputs: Tensor, targets: Tensor, arrays: dict[str, Tensor] | None = None) -> Tensor:
        with self._precision(inputs.device):
            outputs = self.model(inputs) if arrays is None else functional_call(self.model, arrays, (inputs,))
        return self._loss(outputs if self._autocast is None else outputs.float(), targets).mean()

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if self._autocast is None else torch.autocast(device.type, dtype=self._autocast)


def agree(model: nn.Module, eager: MeanLoss, compiled: MeanLoss, inputs: Tensor, targets: Tensor) -> bool:
    """Whether both give the same gradients of one batch; leaves buffers, `.grad` and generators as they were.

    Compilers err: torch 2.13's drops the gradient of a max-pooling from 3x3 to 1x1 before a quantized layer on CPUs,
    and says nothing. Of a model that draws (dropout), eager gradients differ among themselves, and more is forgiven.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = {name: b.detach().clone() for name, b in model.named_buffers()}
    found = []
    for loss, seed in ((eager, 0), (eager, 1), (compiled, 0)):
        with seeded(seed, inputs.device):
            gradients = torch.autograd.grad(loss(inputs, targets), parameters, allow_unused=True)
        found.append([torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)])
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
    least = 1e-3 * float(torch.stack([g.norm() for g in found[0]]).norm())
    return all(
        float((c - a).norm()) <= _TOLERANCE * float(a.norm()) + 2 * float((b - a).norm()) + least
        for a, b, c in zip(*found, strict=True)
    )


def _keep_grids_in_float32(model: nn.Module) -> None:
    """Autocast's products come out in bfloat16, whose 8 bits cannot tell all levels of a grid from each other."""
    for module in model.modules():
        if isinstance(module, Grid):
            module.register_forward_pre_hook(_widened)


def _widened(grid: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x for x in inputs)
