"""Find NaN and infinity. Knows arrays only."""

import numpy as np
from numpy.typing import NDArray

_CHUNK = 65536  # values looked at in one go, so that the answer needs no second vector


class NonFiniteError(ValueError):
    """NaN or infinity among values to encode; whoever holds the whole vector says where."""


def first_nonfinite(values: NDArray[np.floating]) -> int | None:
    """Index of the first NaN or infinity of a 1-D array; None if all are finite."""
    for start in range(0, values.size, _CHUNK):
        finite = np.isfinite(values[start : start + _CHUNK])
        if not finite.all():
            return start + int(np.argmin(finite))
    return None
