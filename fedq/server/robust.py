"""Means that a minority of clients cannot move far: by coordinate, over whole updates. Knows arrays; not packets.

Each coordinate's values are sorted first, so the result is the same bits in any order of the updates. Updates lie in
memory, or in a temporary file where they are large; a block of coordinates is read at a time.
"""

import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedq.core import choices
from fedq.core.choices import implemented

_IN_MEMORY = 256 * 2**20  # bytes of updates; more go to a temporary file
_BLOCK = 2**22  # values that are sorted at once


class Aggregate(Protocol):
    """One value of many, for each coordinate."""

    def __call__(self, ordered: NDArray[np.float32]) -> NDArray[np.float64]:
        """`ordered`: shape (updates, coordinates), each column in ascending order."""


@dataclass(frozen=True)
class Median:
    """The middle value of each coordinate (arXiv:1803.01498); the mean of the middle two of an even number."""

    def __call__(self, ordered: NDArray[np.float32]) -> NDArray[np.float64]:
        count = len(ordered)
        return _mean(ordered[(count - 1) // 2 : count // 2 + 1])


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without the smallest and the largest values (arXiv:1803.01498).

    `trim` is the share that is left out at either end, rounded up: it is to cover every hostile client.
    """

    trim: float

    def __call__(self, ordered: NDArray[np.float32]) -> NDArray[np.float64]:
        count = len(ordered)
        left_out = min(math.ceil(self.trim * count - 1e-9), (count - 1) // 2)
        return _mean(ordered[left_out : count - left_out])


def _mean(ordered: NDArray[np.float32]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = np.mean(ordered, axis=0, dtype=np.float64)
    return mean


# strategy.aggregate: all there are; the weighted mean is summed exactly as updates come, and needs none of this.
AGGREGATES: dict[str, Callable[..., Aggregate] | None] = implemented(
    choices.AGGREGATES, {"mean": None, "median": Median, "trimmed_mean": TrimmedMean}
)


def aggregated(
    updates: Iterable[NDArray[np.float32]], aggregate: Aggregate, *, count: int, size: int
) -> NDArray[np.float32]:
    """The aggregate of `count` updates of `size` values each, of which only one is wanted at a time."""
    with tempfile.TemporaryFile() as file:
        rows: NDArray[np.float32]
        if 4 * count * size > _IN_MEMORY:
            rows = np.memmap(file, np.float32, "w+", shape=(count, size))
        else:
            rows = np.empty((count, size), np.float32)
        for row, update in zip(rows, updates, strict=True):
            np.add(update, 0.0, out=row)  # -0.0 becomes 0.0: the two have no order among themselves
        result = np.empty(size, np.float32)
        width = max(1, _BLOCK // count)
        for start in range(0, size, width):
            result[start : start + width] = aggregate(np.sort(rows[:, start : start + width], axis=0))
        return result
