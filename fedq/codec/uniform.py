"""Blocks of values <-> evenly spaced levels, one scale a block. Knows blocks; not runs, bits or packets.

`largest` is the largest level: 127, 7 or 1. With A the largest magnitude in a block:

    scale = 0 if A = 0, else min(max(A / largest, 2^-126), limit)
    y     = value * (1 / scale), clipped to -largest..largest
    nearest:     level = y rounded to the nearest integer, ties to even
    stochastic:  level = sign(y) * (floor(|y|) + 1 if u < |y| - floor(|y|) else floor(|y|)),
                 u = (word(i) >> 8) * 2^-24, word as in rounding.py, i = the value's index in the whole vector

Every operation above rounds once, to float32: a compiled kernel gives the same bits if it neither fuses nor
widens. Scales are never subnormal, so they do not depend on a flush-to-zero mode, and largest * limit is finite,
so no packet decodes to infinity.

Error: at most 1/2 scale (nearest) or 1 scale (stochastic), plus 2^-15 scale for the float32 arithmetic: three
products and quotients of relative error 2^-24 each on at most 127 scales, and 2^-24 for the grid of u, add up
to 382 * 2^-24. By the same sum the stochastic error has a mean of at most 2^-15 scale.
"""

import numpy as np
from numpy.typing import NDArray

from fedq.codec.finite import NonFiniteError
from fedq.codec.rounding import uniform

SMALLEST_SCALE = np.float32(2.0**-126)
_FLT_MAX = np.finfo(np.float32).max


def largest_scale(largest: int) -> np.float32:
    """The largest float32 scale that `largest` levels of still make a finite float32."""
    limit = np.float32(_FLT_MAX / np.float32(largest))
    with np.errstate(over="ignore"):
        return limit if np.isfinite(np.float32(largest) * limit) else np.nextafter(limit, np.float32(0))


def to_levels(
    blocks: NDArray[np.float32], largest: int, limit: np.float32, *, first_index: int, key: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales of shape (blocks,) and levels as float32 of shape (blocks, width); `key=None` rounds to nearest."""
    magnitude = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
    if not np.isfinite(magnitude).all():
        raise NonFiniteError
    with np.errstate(under="ignore"):
        scales: NDArray[np.float32] = np.clip(magnitude / np.float32(largest), SMALLEST_SCALE, limit)
        scales[magnitude == 0] = 0
        y = blocks * _inverse(scales)[:, None]
    if key is None:
        # |y| is at most largest + 2^-16, so rounding is the clipping.
        return scales, np.rint(y, out=y)
    u = uniform(key=key, first_index=first_index, count=y.size).reshape(y.shape)
    return scales, _round_stochastically(y, u, np.float32(largest))


def _inverse(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    inverse = np.zeros_like(scales)
    np.divide(np.float32(1), scales, out=inverse, where=scales > 0)
    return inverse


def _round_stochastically(y: NDArray[np.float32], u: NDArray[np.float32], largest: np.float32) -> NDArray[np.float32]:
    """Up in magnitude with probability frac(|y|), so E[result] = y  (QSGD, arXiv:1610.02132)."""
    magnitude = np.abs(y)
    # The largest value may land a rounding error above `largest`, and must not be rounded up.
    np.minimum(magnitude, largest, out=magnitude)
    below = np.floor(magnitude)
    # The fraction is exact; the rounded sum magnitude + u would not be, and would bias the result.
    magnitude -= below
    below += u < magnitude
    return np.copysign(below, y)
