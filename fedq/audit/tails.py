"""Tail probabilities and intervals of the distributions that audits need. Knows numbers; not privacy.

They are implemented here because fedq does not depend on scipy.
"""

import math
from statistics import NormalDist

import numpy as np

NORMAL = NormalDist()
_FEW_DEGREES = 1000


def binomial_at_least(successes: int, *, trials: int, probability: float) -> float:
    """P[Binomial(trials, probability) >= successes], summed in logarithms."""
    if successes <= 0:
        return 1.0
    if successes > trials or probability <= 0:
        return 0.0
    return min(1.0, float(binomial_weights(trials=trials, probability=probability)[successes:].sum()))


def binomial_weights(*, trials: int, probability: float) -> np.ndarray:
    """P[Binomial = k] for k = 0 ... trials, float64."""
    k = np.arange(trials + 1)
    if not 0 < probability < 1:
        return np.asarray(k == (trials if probability >= 1 else 0), np.float64)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    ways = factorials[trials] - factorials - factorials[::-1]
    return np.asarray(np.exp(ways + k * math.log(probability) + (trials - k) * math.log1p(-probability)))


def clopper_pearson(successes: int, *, trials: int, confidence: float) -> tuple[float, float]:
    """Exact (lower, upper) bounds of a binomial probability, each at `confidence` (Clopper & Pearson 1934)."""

    def edge(k: int, wanted: float) -> float:
        """The p at which P[at least k] is `wanted`; the tail grows with p."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            if binomial_at_least(k, trials=trials, probability=middle) < wanted:
                low = middle
            else:
                high = middle
        return low if wanted < 0.5 else high

    lower = 0.0 if successes == 0 else edge(successes, 1 - confidence)
    upper = 1.0 if successes == trials else edge(successes + 1, confidence)
    return lower, upper


def sum_of_squares_below(total: float, *, count: int) -> float:
    """P[chi-square with `count` degrees of freedom <= total]: a series, or Wilson & Hilferty 1931 for many."""
    if count <= _FEW_DEGREES:
        a, x = count / 2, total / 2
        if x <= 0 or x > 1.5 * a + 50:  # above, the probability is 1 up to 1e-20
            return float(x > 0)
        # The series of the incomplete gamma function: each term is the previous one times x / (a + n).
        terms = np.cumprod(x / (a + np.arange(1, 4 * _FEW_DEGREES)))
        return min(1.0, math.exp(a * math.log(x) - x - math.lgamma(a + 1)) * (1 + float(terms.sum())))
    spread = 2 / (9 * count)
    return NORMAL.cdf((math.cbrt(total / count) - (1 - spread)) / math.sqrt(spread))


def uncorrelated(left: np.ndarray, right: np.ndarray) -> float:
    """Two-sided p-value of the correlation of two long series with mean zero; 1 if one of them is all zero."""
    scale = math.sqrt(float(left @ left) * float(right @ right))
    if scale == 0 or not math.isfinite(scale):
        return 1.0
    z = float(left @ right) / scale * math.sqrt(left.size)
    return 2 * NORMAL.cdf(-abs(z))
