"""Quantize blocks of values to evenly spaced levels, one scale a block. Depends on blocks; not on runs or packets.

`largest` is the largest level: 127, 7 or 1. With A the largest magnitude in a block:

    scale = 0 if A = 0, else min(max(A / largest, 2^-126), limit)
    y     = value * (1 / scale)
    nearest:     level = y rounded to the nearest integer, ties to even
    stochastic:  level = floor((rint(y * 2^16) + half(i)) / 2^16), in integers but for the rint (ties to even);
                 half as in rounding.py, i = the value's index in the whole vector

half is uniform in 0..2^16-1: the mean of a stochastic level is rint(y * 2^16) / 2^16 exactly (QSGD, arXiv:1610.02132).
Every operation above rounds once, to float32: a compiled kernel gives the same bits if it neither fuses nor
widens. Scales are never subnormal, so they do not depend on a flush-to-zero mode, and largest * limit is finite,
so no packet decodes to infinity.

|y| is at most largest * (1 + 3 * 2^-24), and at most 127 + 2^-17 where largest is 127: no level exceeds `largest`.

Error: at most 1/2 scale (nearest) or 1 scale (stochastic), plus 2^-15 scale: three products and quotients of relative
error 2^-24 each on at most 127 scales add up to 381 * 2^-24, and stochastic rounding to 2^-16 levels first adds 2^-17.
That sum bounds the mean of the stochastic error too.
"""

import numpy as np
from numpy.typing import NDArray

from fedq.codec.finite import NonFiniteError
from fedq.codec.rounding import random_halves

SMALLEST_SCALE = np.float32(2.0**-126)
_FLT_MAX = np.finfo(np.float32).max


def largest_scale(largest: int) -> np.float32:
    """The largest float32 scale for which scale * largest is a finite float32."""
    limit = np.float32(_FLT_MAX / np.float32(largest))
    with np.errstate(over="ignore"):
        return limit if np.isfinite(np.float32(largest) * limit) else np.nextafter(limit, np.float32(0))


def to_levels(
    blocks: NDArray[np.float32], largest: int, limit: np.float32, *, first_index: int, key: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales (shape (blocks,)) and levels as float32 (shape (blocks, width)); `key=None` rounds to nearest."""
    magnitude = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
    if not np.isfinite(magnitude).all():
        raise NonFiniteError
    with np.errstate(under="ignore"):
        scales: NDArray[np.float32] = np.clip(magnitude / np.float32(largest), SMALLEST_SCALE, limit)
        scales[magnitude == 0] = 0
        y = blocks * _inverse(scales)[:, None]
    if key is None:
        # |y| is at most largest + 2^-16, so rounding also clips.
        return scales, np.rint(y, out=y)
    halves = random_halves(key=key, first_index=first_index, count=y.size).reshape(y.shape)
    fixed = np.rint(y * np.float32(2.0**16)).astype(np.int32)
    fixed += halves
    return scales, (fixed >> 16).astype(np.float32)


def _inverse(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    inverse = np.zeros_like(scales)
    np.divide(np.float32(1), scales, out=inverse, where=scales > 0)
    return inverse
