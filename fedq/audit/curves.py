"""Trade-off curves: the limit that a privacy claim sets for every test between neighbours. Knows mechanisms; no data.

A mechanism is f-DP (Dong, Roth, Su 2019, arXiv:1905.02383) if any event of probability x without an example has a
probability of at most `1 - f(x)` with it, and vice versa. Audits need the smallest possible probability of an event.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedq.audit.tails import NORMAL
from fedq.privacy import Accountant, Mechanism, epsilon

# The deltas at which the accountant's curve is computed. Between them the envelope of the tangents lies above the true
# curve, so a refutation of the envelope also refutes the accountant's curve.
_DELTAS = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.02, 0.04, 0.07, 0.15)
_FLAT = 0.02  # epsilon below which larger deltas add nothing


class Curve(Protocol):
    """The trade-off curve of a claim."""

    def least(self, probability: float) -> float:
        """The smallest probability of an event under one neighbour, if it is `probability` under the other."""
        ...


@dataclass(frozen=True)
class GaussianCurve:
    """The curve of two unit normals at distance `mu`; T full batches with noise multiplier s have mu = sqrt(T) / s.

    >>> round(GaussianCurve(1.0).least(0.5), 4)
    0.1587
    """

    mu: float

    def least(self, probability: float) -> float:
        if not 0 < probability < 1:
            return float(probability >= 1)
        return NORMAL.cdf(NORMAL.inv_cdf(probability) - self.mu)

    def epsilon(self, delta: float) -> float:
        """The epsilon of this curve at `delta` (Balle & Wang 2018, arXiv:1805.06530); 0 if delta alone is enough."""

        def spent(eps: float) -> float:
            # e^eps times a tail, as one exponential: the single factors overflow and underflow.
            x = eps / self.mu + self.mu / 2
            tail = NORMAL.cdf(-x)
            second = 0.0 if tail == 0 else math.exp(min(eps + math.log(tail), 0.0))
            return NORMAL.cdf(-eps / self.mu + self.mu / 2) - second

        if self.mu <= 0 or spent(0.0) <= delta:
            return 0.0
        low, high = 0.0, 1.0
        while spent(high) > delta:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if spent(middle) > delta else (low, middle)
        return high


@dataclass(frozen=True)
class AccountedCurve:
    """The curve of several (epsilon, delta) pairs of an accountant."""

    epsilons: tuple[float, ...]
    deltas: tuple[float, ...]

    def least(self, probability: float) -> float:
        eps, delta = np.asarray(self.epsilons), np.asarray(self.deltas)
        by_event = np.exp(-eps) * (probability - delta)
        with np.errstate(over="ignore"):
            by_complement = 1 - delta - np.exp(eps) * (1 - probability)
        return float(max(0.0, by_event.max(), by_complement.max()))


def full_batches(mechanism: Mechanism) -> GaussianCurve:
    """The curve of a mechanism without sampling."""
    return GaussianCurve(math.sqrt(mechanism.steps) / mechanism.noise_multiplier)


def curve_of(mechanism: Mechanism, *, accountant: Accountant = "prv") -> Curve:
    """The claimed curve of a mechanism: in closed form for full batches, else by fedq's own accountant."""
    if mechanism.sample_rate == 1:
        return full_batches(mechanism)
    epsilons: list[float] = []
    for delta in _DELTAS:
        epsilons.append(epsilon([mechanism], delta, accountant=accountant))
        if epsilons[-1] < _FLAT:
            break
    return AccountedCurve(tuple(epsilons), _DELTAS[: len(epsilons)])


def epsilon_of(mechanism: Mechanism, delta: float, *, accountant: Accountant = "prv") -> float:
    """The claimed epsilon: in closed form for full batches, else by fedq's own accountant."""
    if mechanism.sample_rate == 1:
        return full_batches(mechanism).epsilon(delta)
    return epsilon([mechanism], delta, accountant=accountant)
