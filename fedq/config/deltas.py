"""Which delta means anything, from how many it is to protect. Knows the schema's keys; not noise, ledgers or data."""

import math
from collections.abc import Iterator
from typing import Final

from fedq.config.problem import Problem

# The verdict of a run asks for the same (fedq.privacy.evidence, where the reason is); a test compares them.
MOST_DELTA: Final = 1e-3
DELTA_MARGIN: Final = 10
LEAST_DELTA: Final = 1e-15
BOUNDS: Final = (LEAST_DELTA, MOST_DELTA, True, True)


def delta_problems(key: str, delta: float, *, protected: int, of: str) -> Iterator[Problem]:
    """What is wrong with a delta that is within its bounds and protects so many, each an `of`."""
    if LEAST_DELTA <= delta <= MOST_DELTA and not DELTA_MARGIN * delta * protected <= 1:
        rule = f"must be at most 1 / ({DELTA_MARGIN} x {protected}), of {protected} {of}s: else one may leak whole"
        fits = 10.0 ** math.floor(-math.log10(DELTA_MARGIN * protected))
        yield Problem(key, delta, rule, f"Use {key}={min(fits, 1e-5):g}")
