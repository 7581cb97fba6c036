"""Bounds on delta from the number of protected units. Knows the schema's keys; not noise, ledgers or data."""

import math
from collections.abc import Iterator

from fedq.config.problem import Problem
from fedq.core.limits import DELTA_MARGIN, LEAST_DELTA, MOST_DELTA


def delta_problems(key: str, delta: float, *, protected: int, of: str) -> Iterator[Problem]:
    """What is wrong with a delta for `protected` units, each an `of`; one out of its bounds is reported elsewhere."""
    if LEAST_DELTA <= delta <= MOST_DELTA and not DELTA_MARGIN * delta * protected <= 1:
        rule = f"must be at most 1 / ({DELTA_MARGIN} x {protected}), of {protected} {of}s: else one may leak whole"
        fits = 10.0 ** math.floor(-math.log10(DELTA_MARGIN * protected))
        yield Problem(key, delta, rule, f"Use {key}={min(fits, 1e-5):g}")
