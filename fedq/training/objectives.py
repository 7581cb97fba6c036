"""Losses and metrics by name. Depends on torch; not on models, data or privacy.

A loss takes (outputs (n, k), targets, reduction) and reduces over examples by `mean` or `sum`; values of one
example are averaged over its outputs, so that the sum over examples is what DP-SGD clips one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from fedq.core import choices
from fedq.core.choices import implemented

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs, targets -> (n,) one value for each example


def _per_example(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.dim() > 1 else values


LOSSES: dict[str, Loss] = implemented(
    choices.LOSSES,
    {
        "cross_entropy": lambda outputs, targets: functional.cross_entropy(outputs, targets, reduction="none"),
        "binary_cross_entropy": lambda outputs, targets: _per_example(
            functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        ),
        "mse": lambda outputs, targets: _per_example(functional.mse_loss(outputs, targets, reduction="none")),
        "l1": lambda outputs, targets: _per_example(functional.l1_loss(outputs, targets, reduction="none")),
        "huber": lambda outputs, targets: _per_example(functional.huber_loss(outputs, targets, reduction="none")),
    },
)
INTEGER_TARGETS = frozenset({"cross_entropy", "accuracy"})


@cache
def summed(loss: Loss) -> Loss:
    """The sum over examples, as DP-SGD takes it; one function for each loss, so that checks of it are kept."""
    return lambda outputs, targets: loss(outputs, targets).sum()


@dataclass(frozen=True)
class Metric:
    """A quality metric over a whole set: outputs (n, k), targets -> float."""

    of: Callable[[Tensor, Tensor], float]
    greater_is_better: bool
    is_accuracy: bool = False


def _r2(outputs: Tensor, targets: Tensor) -> float:
    """Coefficient of determination, mean over outputs; a constant target that is predicted exactly scores 0."""
    residual = ((outputs - targets) ** 2).sum(0)
    spread = ((targets - targets.mean(0)) ** 2).sum(0)
    return (
        float((1 - residual / spread.clamp_min(torch.finfo(spread.dtype).tiny)).mean())
        if bool((spread > 0).all())
        else 0.0
    )


METRICS: dict[str, Metric] = implemented(
    choices.METRICS,
    {
        "accuracy": Metric(lambda o, t: float((o.argmax(1) == t).double().mean()), True, True),
        "multilabel_accuracy": Metric(lambda o, t: float(((o > 0) == (t > 0.5)).double().mean()), True, True),
        "r2": Metric(_r2, True),
        "mse": Metric(lambda o, t: float(((o - t) ** 2).double().mean()), False),
        "mae": Metric(lambda o, t: float((o - t).abs().double().mean()), False),
    },
)
