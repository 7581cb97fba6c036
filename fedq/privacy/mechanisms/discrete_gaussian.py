"""Exact discrete Gaussian noise on sums of whole numbers. Knows sums and grids; not budgets or models."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedq.privacy.clipping import UNITS, clip_and_round
from fedq.privacy.discrete import LARGEST_SIGMA, SMALLEST_SIGMA, covering_sigma
from fedq.privacy.noise import RandomSource


@dataclass(frozen=True)
class DiscreteGaussian:
    """Whole numbers on a public grid, exact in float64: no bit depends on anything but their sum and the noise."""

    spend_name: str = "discrete-gaussian"
    exact: bool = True
    strength: int = 2
    multiplier_range: tuple[float, float] = (2.0**-16, 2.0**22)  # what the grid holds
    description: str = "Poisson-subsampled discrete Gaussian on clipped per-example gradients, in exact integers"
    description_of_sums: str = "exact discrete Gaussian noise, in whole steps of 2^-32,"
    caveat: str | None = None

    clipped_sum = staticmethod(clip_and_round)

    def noised_gradients(
        self, total: Tensor, noise_multiplier: float, clip_norm: float, random: RandomSource
    ) -> Tensor:
        sigma = covering_sigma(noise_multiplier * UNITS)
        noise = torch.from_numpy(random.discrete_gaussian(sigma, total.numel())).double()
        return (total + noise) * (clip_norm / UNITS)

    def noised_steps(
        self, steps: NDArray[np.int64], *, grid: float, std: float, random: RandomSource
    ) -> NDArray[np.float64]:
        whole: NDArray[np.int64] = steps + random.discrete_gaussian(self.drawn_std(std, grid=grid) * grid, steps.size)
        return whole / grid

    def drawn_std(self, std: float, *, grid: float) -> float:
        """A little more than what is accounted for, to cover the grid."""
        return covering_sigma(std * grid) / grid

    def std_range(self, grid: float) -> tuple[float, float]:
        """The sampler's bounds, a factor of 2 within them, so that they hold for std times clip norm."""
        return 2 * SMALLEST_SIGMA / grid, LARGEST_SIGMA / grid / 2
