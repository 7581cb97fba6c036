"""Bounds on delta from the number of protected units. Knows the schema's keys; not noise, ledgers or data."""

import math
from collections.abc import Iterator
from typing import Final

from fedq.config.problem import Problem

# `fedq.privacy.evidence` has the same limits, and explains them; a test compares both.
MOST_DELTA: Final = 1e-3
DELTA_MARGIN: Final = 10
LEAST_DELTA: Final = 1e-15
BOUNDS: Final = (LEAST_DELTA, MOST_DELTA, True, True)


def delta_problems(key: str, delta: float, *, protected: int, of: str) -> Iterator[Problem]:
    """What is wrong with a delta for `protected` units, each an `of`; deltas out of `BOUNDS` are reported elsewhere."""
    if LEAST_DELTA <= delta <= MOST_DELTA and not DELTA_MARGIN * delta * protected <= 1:
        rule = f"must be at most 1 / ({DELTA_MARGIN} x {protected}), of {protected} {of}s: else one may leak whole"
        fits = 10.0 ** math.floor(-math.log10(DELTA_MARGIN * protected))
        yield Problem(key, delta, rule, f"Use {key}={min(fits, 1e-5):g}")
