"""What the tests of DP-SGD share: a source that draws what it is told to, what an optimizer saw, the oracle."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedq.privacy import DPSGD, SeededRandom


def summed_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="sum")


class Quiet(SeededRandom):
    """Draws the batches it is told to and no noise, so that a step shows the bare clipped sum."""

    def __init__(self, *batches: list[int]) -> None:
        super().__init__(0)
        self.batches = list(batches)

    def bernoulli(self, q: float, n: int) -> np.ndarray:
        return np.isin(np.arange(n), self.batches.pop(0))

    def normal(self, shape):
        return np.zeros(shape)

    def discrete_gaussian(self, sigma, count):
        return np.zeros(count, dtype=np.int64)


class Watch(torch.optim.SGD):
    """An optimizer that keeps the gradients it was given."""

    def __init__(self, parameters, lr=0.0):
        super().__init__(parameters, lr=lr)
        self.seen: list[Tensor] = []

    def step(self, closure=None):
        parameters = self.param_groups[0]["params"]
        self.seen.append(torch.cat([p.grad.flatten().double() for p in parameters]))
        return super().step(closure)


def train(model, inputs, targets, plan, context, *, random, ledger, lr=0.0, **options):
    """Run the mechanism; returns the gradients that the optimizer saw, and the evidence."""
    watch: list[Watch] = []

    def make(parameters):
        watch.append(Watch(parameters, lr))
        return watch[0]

    mechanism = DPSGD(plan, random=random, ledger=ledger)
    options = {"loss": summed_loss} | options
    evidence = mechanism.run(model, inputs, targets, make_optimizer=make, context=context, **options)
    return watch[0].seen, evidence


def one_at_a_time(model, inputs, targets, clip_norm) -> Tensor:
    """The oracle: autograd on a single example, clipped in float64, summed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for x, y in zip(inputs, targets, strict=True):
        gradients = torch.autograd.grad(summed_loss(model(x[None]), y[None]), parameters)
        flat = torch.cat([g.flatten().double() for g in gradients])
        total += flat * min(1.0, clip_norm / float(flat.norm()))
    return total
