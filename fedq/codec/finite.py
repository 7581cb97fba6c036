"""Find NaN, infinity and the largest magnitude of arrays."""

import numpy as np
from numpy.typing import NDArray

_CHUNK = 65536  # values per step, so that no second vector is needed


class NonFiniteError(ValueError):
    """NaN or infinity among the values to encode. The caller that holds the whole vector reports the position."""


def largest_magnitude(values: NDArray[np.float32]) -> float:
    """max |value|; NaN if any value is NaN; 0 for an empty array."""
    return float(np.maximum(values.max(initial=0), -values.min(initial=0)))


def check_finite(values: NDArray[np.float32]) -> None:
    """NonFiniteError if any value is NaN or infinite."""
    if not np.isfinite(largest_magnitude(values)):
        raise NonFiniteError


def first_nonfinite(values: NDArray[np.floating]) -> int | None:
    """Index of the first NaN or infinity of a 1-D array; None if all values are finite."""
    for start in range(0, values.size, _CHUNK):
        finite = np.isfinite(values[start : start + _CHUNK])
        if not finite.all():
            return start + int(np.argmin(finite))
    return None
