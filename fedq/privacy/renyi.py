"""A Renyi bound on any number of different Gaussian mechanisms: cheap in time and memory, and slightly loose.
Knows noise multipliers, rates and counts; not ledgers, budgets or the exact accountants.

For an integer a >= 2, one Poisson-subsampled Gaussian step has (Mironov et al. 2019, arXiv:1908.10530, section 3.3)

    (a - 1) D_a = log sum_k C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 sigma^2)).

The weights C(a, k) (1 - q)^(a - k) q^k sum to 1 and the exponent is 0 at k = 0 and 1, so the sum is 1 plus terms that
are all positive, with exp(x) - 1 in place of exp(x). This form has no cancellation, even for tiny divergences.

Between integer orders, (a - 1) D_a is convex in a and 0 at a = 1 (it is the logarithm of a moment), so a straight line
between the two nearest orders is an upper bound. So is a / (2 sigma^2), since subsampling only lowers the divergence.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_INTEGER: Final = np.array([*range(2, 64), 80, 96, 128, 192, 256, 512, 1024])
_ORDERS: Final = np.sort(np.array([*(1 + tenths / 10 for tenths in range(1, 100)), *map(float, _INTEGER[10:])]))
_BLOCK: Final = 128  # mechanisms at once: at order 1024 their terms take 1 MB
# Logarithms of terms reach about 2^16, so rounding errors stay below 2^-30 of a term, and of a sum of positive terms.
# `_TINY` covers terms that underflow to zero.
_ROUND_UP: Final = 1 + 2.0**-30
_TINY: Final = float(np.finfo(np.float64).tiny)


def renyi_epsilon(mechanisms: Sequence[tuple[float, float, int]], delta: float) -> float:
    """Upper bound on epsilon at `delta` of tuples (noise multiplier, sampling rate, steps); inf beyond float64.

    >>> 4.0 < renyi_epsilon([(1.0, 1.0, 1)], 1e-5) < 5.0
    True
    """
    table = np.array(mechanisms, dtype=np.float64).reshape(-1, 3)
    total = np.zeros(_ORDERS.size)
    for start in range(0, len(table), _BLOCK):
        noise, rate, steps = table[start : start + _BLOCK].T
        total += steps @ _divergences(noise, rate)
    # Balle et al. 2020 (arXiv:1905.09982), theorem 21.
    spent = total + np.log1p(-1 / _ORDERS) - (math.log(delta) + np.log(_ORDERS)) / (_ORDERS - 1)
    return max(0.0, float(spent.min())) * _ROUND_UP


def _divergences(noise: Floats, rate: Floats) -> Floats:
    """Upper bounds on the Renyi divergence of one step; shape (mechanisms, orders)."""
    points = np.concatenate([[1.0], _INTEGER])
    right = np.searchsorted(points, _ORDERS)
    share = (_ORDERS - points[right - 1]) / (points[right] - points[right - 1])
    # With very little noise a moment may be infinite or NaN; then the bound without sampling is used.
    with np.errstate(all="ignore"):
        per_order = 1 / (2 * noise**2)
        moments = np.concatenate([np.zeros((len(noise), 1)), _log_moments(per_order, rate)], axis=1)
        lines = ((1 - share) * moments[:, right - 1] + share * moments[:, right]) / (_ORDERS - 1)
        least: Floats = np.fmin(lines, np.outer(per_order, _ORDERS))
    return least * _ROUND_UP + _TINY


def _log_moments(per_order: Floats, rate: Floats) -> Floats:
    """(order - 1) times the divergence of one step; shape (mechanisms, integer orders)."""
    k = np.arange(2, _INTEGER[-1] + 1)
    exponents = np.outer(per_order, k * (k - 1.0))
    sampled = np.outer(np.log(rate), k) + exponents + np.log(-np.expm1(-exponents))
    left_out = np.outer(np.log1p(-rate), k - 2.0)
    left_out[:, 0] = 0.0  # the factor (1 - q)^0; at rate 1 the product above is NaN
    return np.stack([_log_moment(int(a), sampled[:, : a - 1], left_out[:, a - 2 :: -1]) for a in _INTEGER], axis=1)


def _log_moment(order: int, sampled: Floats, left_out: Floats) -> Floats:
    """log(1 + the sum over k), shape (mechanisms,); the terms are given as logarithms, (mechanisms, order - 1)."""
    terms = _log_choose(order) + sampled + left_out
    largest = terms.max(axis=1)
    terms -= largest[:, None]
    moment: Floats = np.logaddexp(0.0, largest + np.log(np.exp(terms, out=terms).sum(axis=1)))
    return moment


@lru_cache(maxsize=len(_INTEGER))
def _log_choose(order: int) -> Floats:
    """log C(order, k) for k = 2, 3, ..., order, from exact integers."""
    return np.array([math.log(math.comb(order, k)) for k in range(2, order + 1)])
