"""Checks whether a scaler was fitted on the inputs: then the mean of each feature over the rows is exactly zero.

Knows arrays. With a scaler from public constants, means differ from zero by about 1/sqrt(rows) of their spread. With a
scaler fitted on the same rows, only round-off is left. A scaler fitted on other clients' rows too is not detected.
"""

from collections.abc import Mapping

import numpy as np

from fedq.audit.findings import Check
from fedq.audit.tails import NORMAL

_FEWEST_ROWS, _FEWEST_FEATURES = 10, 2
_ROUNDING = 1e-6  # rounding of a mean of float32 values, in spreads; smaller means count as this
_DENSITY = NORMAL.pdf(0)  # maximum of the normal density


def scaling_check(parts: Mapping[str, np.ndarray]) -> Check:
    """The check; `parts`: name -> inputs (n, ...) of rows that a scaler may have been fitted on (all, or a client's).

    The p-value uses the worst feature alone, so it needs no independence of features. If the mean of that feature is
    normal around any value, it is this close to zero with at most this probability.
    """
    best, seen = 1.0, "no part of the data has enough features to check"
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
