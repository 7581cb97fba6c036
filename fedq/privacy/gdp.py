"""Gaussian DP: a privacy curve as one number, the mu of a Gaussian mechanism that leaks at least as much.
Knows mechanisms and deltas; not data or ledgers.

mu-GDP (Dong, Roth, Su 2019, arXiv:1905.02383) describes an attacker's trade-off between both kinds of error, which an
epsilon at one delta does not. It is reported as in Gomez et al. 2025 (arXiv:2503.10945): the smallest mu whose curve is
nowhere below the mechanism's.
"""

import math
from collections.abc import Sequence
from typing import Final

from fedq.privacy.accounting import Accountant, AnyMechanism, epsilon

# The deltas at which the curves are compared. Between and outside them nothing is claimed.
DELTAS: Final = tuple(10.0**power for power in range(-9, 0))


def gaussian_mu(mechanisms: Sequence[AnyMechanism], *, accountant: Accountant = "prv") -> float:
    """Smallest mu, rounded up to 3 digits, whose Gaussian curve is nowhere below the mechanisms' at `DELTAS`.

    Each epsilon of the accountant is an upper bound, so mu is one too, at these deltas.
    """
    return max((_mu_through(epsilon(mechanisms, delta, accountant=accountant), delta) for delta in DELTAS), default=0.0)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of the mu-Gaussian mechanism at an epsilon (Balle and Wang 2018, theorem 8)."""
    if mu <= 0:
        return 0.0
    return _phi(-epsilon / mu + mu / 2) - math.exp(epsilon + _log_phi(-epsilon / mu - mu / 2))


def _mu_through(epsilon: float, delta: float) -> float:
    """The mu whose curve passes through (epsilon, delta), rounded up."""
    if epsilon <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(high, epsilon) < delta:
        low, high = high, 2 * high
    while high - low > 5e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_delta(middle, epsilon) >= delta else (middle, high)
    return high


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_phi(x: float) -> float:
    """Logarithm of the normal distribution function; an asymptotic series where erfc underflows."""
    if x > -30:
        return math.log(_phi(x))
    return -0.5 * x * x - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-1 / (x * x))
