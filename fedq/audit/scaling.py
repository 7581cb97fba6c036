"""Whether inputs carry the mark of a scaler that was fitted on them: features whose mean over the rows is exactly zero.

Knows arrays. A scaler with public constants leaves means about 1/sqrt(rows) of their spread away from zero; one that
was fitted on these very rows leaves round-off. It cannot see a scaler fitted on other clients' rows as well.
"""

from collections.abc import Mapping

import numpy as np

from fedq.audit.findings import Check
from fedq.audit.tails import NORMAL

_FEWEST_ROWS, _FEWEST_FEATURES = 10, 2
_ROUNDING = 1e-6  # of a mean of float32 values, in spreads: closer to zero says no more
_DENSITY = NORMAL.pdf(0)  # the largest of a normal density, in its own standard deviations


def scaling_check(parts: Mapping[str, np.ndarray]) -> Check:
    """`parts`: name -> inputs (n, ...) of the rows that a scaler may have been fitted on: all, or one client's.

    The p-value is that of the worst feature alone, so it needs no independence of features: were this one's mean normal
    around any value, it would fall so near to zero with at most that probability.
    """
    best, seen = 1.0, "no part of the data has features to look at"
    looked = 0
    for name, inputs in parts.items():
        rows = inputs.reshape(len(inputs), -1).astype(np.float64)
        spread = rows.std(axis=0) if len(rows) >= _FEWEST_ROWS else np.zeros(rows.shape[1])
        varied = spread > 0
        if varied.sum() < _FEWEST_FEATURES:
            continue
        looked += 1
        off = np.abs(rows[:, varied].mean(axis=0)) / spread[varied]
        worst = max(float(off.max()), _ROUNDING)
        p = min(1.0, 2 * _DENSITY * worst * len(rows) ** 0.5)
        if p <= best:
            best, seen = p, f"{name}: the mean furthest from zero is {off.max():.2g} standard deviations off"
    return Check("scaling", "no scaler was fitted on the rows it scales", min(1.0, best * max(1, looked)), seen)
