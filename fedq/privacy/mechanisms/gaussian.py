"""Gaussian noise in floating point, by Box-Muller from a keystream. Knows sums; not budgets or models."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedq.privacy.clipping import clip_and_sum
from fedq.privacy.noise import RandomSource


@dataclass(frozen=True)
class Gaussian:
    """Float sums and float noise: epsilon is that of the ideal mechanism, and their low bits may reveal more."""

    spend_name: str = "gaussian"
    exact: bool = False
    strength: int = 1
    multiplier_range: tuple[float, float] = (0.0, math.inf)
    description: str = "Poisson-subsampled Gaussian on clipped per-example gradients"
    description_of_sums: str = "floating-point Gaussian noise"
    caveat: str | None = (
        "the noise is a floating-point Gaussian: epsilon is that of the ideal mechanism, and attacks on low bits "
        "(Mironov 2012) are harder, not excluded"
    )

    clipped_sum = staticmethod(clip_and_sum)

    def noised_gradients(
        self, total: Tensor, noise_multiplier: float, clip_norm: float, random: RandomSource
    ) -> Tensor:
        return total + noise_multiplier * clip_norm * torch.from_numpy(random.normal(total.numel()))

    def noised_steps(
        self, steps: NDArray[np.int64], *, grid: float, std: float, random: RandomSource
    ) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = steps / grid
        return sums + std * random.normal(steps.size)

    def drawn_std(self, std: float, *, grid: float) -> float:
        return std

    def std_range(self, grid: float) -> tuple[float, float]:
        return 0.0, math.inf
