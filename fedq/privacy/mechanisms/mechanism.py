"""The interface of a noise mechanism: how it samples, how it is accounted, how a policy ranks it, how it is described.
Knows sums and a source of randomness; not models, ledgers, clients or messages.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedq.per_example import Contribution
from fedq.privacy.noise import RandomSource


class ClippedSum(Protocol):
    """`fedq.privacy.clipping.clip_and_sum`, or another function of its signature."""

    def __call__(
        self,
        contributions: Sequence[Contribution],
        parameters: Sequence[nn.Parameter],
        clip_norm: float,
        pruned: Mapping[nn.Parameter, Tensor] | None = None,
        *,
        count: int | None = None,
        kernels: ModuleType | None = None,
    ) -> Tensor: ...


class NoiseMechanism(Protocol):
    """Noise on a clipped sum: of per-example gradients in a client's step, or of clients' updates at the server."""

    @property
    def spend_name(self) -> str:
        """Its name in ledgers, by which an accountant finds its cost: a Gaussian's."""

    @property
    def exact(self) -> bool:
        """Whether sums and noise are whole numbers, so that epsilon covers every bit. Else `caveat` says what it lacks.

        Then an example's share must have the same bits in every batch, which is checked.
        """

    @property
    def strength(self) -> int:
        """How a data owner's policy ranks it: of two mechanisms the stronger has the larger number."""

    @property
    def description(self) -> str:
        """For the privacy statement: the mechanism on per-example gradients."""

    @property
    def description_of_sums(self) -> str:
        """For the privacy statement: the noise on a sum of updates."""

    @property
    def caveat(self) -> str | None:
        """What epsilon does not cover, for the privacy statement; None: nothing."""

    @property
    def multiplier_range(self) -> tuple[float, float]:
        """Smallest and largest noise multiplier that it can draw."""

    @property
    def clipped_sum(self) -> ClippedSum:
        """From per-example gradients to the sum of the clipped ones, float64, in the mechanism's own unit."""

    def noised_gradients(
        self, total: Tensor, noise_multiplier: float, clip_norm: float, random: RandomSource
    ) -> Tensor:
        """A sum of `clipped_sum` and its noise, float64, in the unit of the gradients."""

    def noised_steps(
        self, steps: NDArray[np.int64], *, grid: float, std: float, random: RandomSource
    ) -> NDArray[np.float64]:
        """`steps` / `grid`, whole numbers that clients' updates add up to, with noise of at least `std` on each."""

    def drawn_std(self, std: float, *, grid: float) -> float:
        """Standard deviation of the noise that `noised_steps` draws; never below `std`."""

    def std_range(self, grid: float) -> tuple[float, float]:
        """Smallest and largest standard deviation that `noised_steps` can draw on a grid of 1 / `grid`."""
