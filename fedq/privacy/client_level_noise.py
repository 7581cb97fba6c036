"""Noise on whole numbers that clients add up to: exact in integers, or a floating-point Gaussian.
Knows sums, grids and a source of randomness; not clips, ledgers, clients or what is released.
"""

import numpy as np
from numpy.typing import NDArray

from fedq.privacy.discrete import LARGEST_SIGMA, SMALLEST_SIGMA, covering_sigma
from fedq.privacy.noise import RandomSource
from fedq.privacy.plan import Noise

# Units to 1 of an update, as the server's accumulator counts them, and of the count of clients.
GRID = 2.0**32
COUNT_GRID = 2.0**16
# Of std times clip norm, so that the sampler's bounds hold for each, a factor of 2 within them.
LEAST_STD, LARGEST_STD = 2 * SMALLEST_SIGMA / GRID, LARGEST_SIGMA / GRID / 2


def noised(
    steps: NDArray[np.int64], *, grid: float, std: float, noise: Noise, random: RandomSource
) -> NDArray[np.float64]:
    """`steps` / `grid` with noise of `std` on each value.

    `discrete`: a whole number of steps is added to each, so what leaves is a function of whole numbers alone.
    """
    if noise == "gaussian":
        sums: NDArray[np.float64] = steps / grid
        return sums + std * random.normal(steps.size)
    whole: NDArray[np.int64] = steps + random.discrete_gaussian(
        drawn_std(std, grid=grid, noise=noise) * grid, steps.size
    )
    return whole / grid


def drawn_std(std: float, *, grid: float, noise: Noise) -> float:
    """Of the noise that is drawn: with `discrete` a little more than what is accounted for, to cover the grid."""
    return std if noise == "gaussian" else covering_sigma(std * grid) / grid
