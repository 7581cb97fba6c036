"""Quantize rotated blocks to the levels that are optimal for Gaussian values (Lloyd 1982, Max 1960).

The values of a rotated block z of m values are about normal, with mean 0 and variance |z|^2 / m:

    code  = number of thresholds below z * fl32(1 / sqrt(|z|^2 / m));   q = points[code]
    scale = |z|^2 / <z, q>        E[decoded] = z over uniform rotations: DRIVE and EDEN (arXiv:2105.08339, 2108.08842)
          = <z, q> / |q|^2        the least squared error of this packet; error feedback corrects its bias

A block with |z|^2 < m * 2^-200 has scale 0. Sums are in float64 and in the order of `tree_sum`, so that every
implementation gets the same bits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedq.codec.rotation import LARGEST_SCALE
from fedq.codec.uniform import SMALLEST_SCALE

_VANISHING = 2.0**-200


@dataclass(frozen=True)
class Points:
    """The value of each code in units of the scale, ascending, and the thresholds between the values; float32."""

    points: NDArray[np.float32]
    thresholds: NDArray[np.float32]


def _symmetric(points: list[float], thresholds: list[float]) -> Points:
    """Both halves from the positive half."""
    upper, between = np.array(points, np.float32), np.array(thresholds, np.float32)
    middle = np.zeros(1, np.float32)
    return Points(np.concatenate([-upper[::-1], upper]), np.concatenate([-between[::-1], middle, between]))


# Bits -> levels. With 1 bit the scale absorbs the value of the only point; 1.0 is exact.
LLOYD_MAX = {
    1: _symmetric([1.0], []),
    2: _symmetric([0.4527800381183624, 1.5104175806045532], [0.9815987944602966]),
    4: _symmetric(
        [
            0.12839503586292267,
            0.38804829120635986,
            0.6567591428756714,
            0.9423404335975647,
            1.2562311887741089,
            1.6180464029312134,
            2.069017171859741,
            2.7325894832611084,
        ],
        [
            0.25822165608406067,
            0.5224037170410156,
            0.7995497584342957,
            1.0992858409881592,
            1.4371387958526611,
            1.843531847000122,
            2.400803327560425,
        ],
    ),
}


def to_codes(
    rotated: NDArray[np.float32], levels: Points, *, error_feedback: bool
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scales (float32, shape (blocks,)) and codes (uint8, shape (blocks, width))."""
    z = rotated.astype(np.float64)
    energy = tree_sum(z * z)
    present = energy >= rotated.shape[1] * _VANISHING
    rms = np.sqrt(np.where(present, energy, 1) / rotated.shape[1])
    y = rotated * np.where(present, 1 / rms, 0).astype(np.float32)[:, None]
    codes = np.zeros(y.shape, np.uint8)
    for threshold in levels.thresholds:
        codes += y > threshold
    q = levels.points[codes].astype(np.float64)
    along = np.where(present, tree_sum(z * q), 1)
    scales = along / tree_sum(q * q) if error_feedback else energy / along
    with np.errstate(under="ignore"):
        clipped = np.clip(scales, float(SMALLEST_SCALE), float(LARGEST_SCALE)).astype(np.float32)
    return np.where(present, clipped, np.float32(0)), codes


def tree_sum(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of each row, padded with zeros to a power of two: the second half is added to the first, repeatedly."""
    width = 1 << (rows.shape[1] - 1).bit_length()
    if width == rows.shape[1]:
        total = rows
    else:
        total = np.zeros((rows.shape[0], width))
        total[:, : rows.shape[1]] = rows
    while width > 1:
        width //= 2
        total = total[:, :width] + total[:, width : 2 * width]
    return total[:, 0]
