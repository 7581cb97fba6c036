"""Membership inference by the loss of a model. Knows outputs and examples; not training.

The score is the probability that a training example has a smaller loss than a held-out one: the area under the ROC
curve (Yeom et al. 2018, arXiv:1709.01604). 0.5 is chance. It measures one attack on one model, and bounds nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fedq.audit.tails import NORMAL
from fedq.data import Examples
from fedq.training.objectives import Loss

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Membership:
    """The score of one model, with its confidence interval at `CONFIDENCE`."""

    model: str
    auc: float
    low: float
    high: float
    members: int
    others: int


def membership(
    model: str,
    member_outputs: np.ndarray,
    members: Examples,
    other_outputs: np.ndarray,
    others: Examples,
    *,
    loss: Loss,
) -> Membership:
    """The score from a model's outputs (n, k) on its training examples, and on others from the same source."""
    member_losses = _losses(member_outputs, members, loss)
    other_losses = _losses(other_outputs, others, loss)
    auc, error = area(other_losses, member_losses)
    reach = NORMAL.inv_cdf((1 + CONFIDENCE) / 2) * error
    return Membership(model, auc, max(0.0, auc - reach), min(1.0, auc + reach), len(members), len(others))


def area(larger: np.ndarray, smaller: np.ndarray) -> tuple[float, float]:
    """(P[larger > smaller], its standard error) after DeLong et al. 1988; ties count one half."""
    ranks = _midranks(np.concatenate([larger, smaller]))
    n, m = len(larger), len(smaller)
    # For each value: the share of the other sample below it; ties count one half.
    above = (ranks[:n] - _midranks(larger)) / m
    below = 1 - (ranks[n:] - _midranks(smaller)) / n
    error = (above.var(ddof=1) / n + below.var(ddof=1) / m) ** 0.5 if min(n, m) > 1 else 0.5
    return float(above.mean()), float(error)


def _midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[inverse]
    return ranks


def _losses(outputs: np.ndarray, examples: Examples, loss: Loss) -> np.ndarray:
    values: np.ndarray = loss(torch.from_numpy(outputs), torch.from_numpy(examples.targets)).double().numpy()
    return values
