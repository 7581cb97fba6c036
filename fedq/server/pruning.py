"""Which weights of the global model are zero for good, and when. Knows the layout and vectors; not messages or models.

Magnitude pruning while training goes on (Zhu & Gupta 2017, arXiv:1710.01878), on the float32 master: clients see
masks, and choose none. Under DP the master is made of noised updates, so the mask is post-processing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedq.codec import Kept, Layout, Segment
from fedq.codec.mask import prunable
from fedq.codec.sparse import smallest


@dataclass(frozen=True)
class Pruning:
    """What is pruned, how far, and in which rounds."""

    names: tuple[str, ...]  # segments; those too small to be worth it stay dense
    sparsity: float  # share of each that is zero at the end, in (0, 1)
    begin: int  # round up to which nothing is pruned
    end: int  # round after which the sparsity is reached

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity}: must be in (0, 1); leave the pruning out for a dense model")
        if not 0 <= self.begin < self.end:
            raise ValueError(f"begin={self.begin}, end={self.end}: pruning must begin before it ends")

    def sparsity_after(self, round: int) -> float:
        """s - s (1 - t)^3, where t runs from 0 to 1 between the two rounds: fast at first, while much is redundant."""
        if round >= self.end:
            return self.sparsity
        left = 1 - max(0, round - self.begin) / (self.end - self.begin)
        return self.sparsity * (1 - left**3)


class Pruner:
    """The mask of one run: once a weight is pruned, it stays so."""

    def __init__(self, layout: Layout, pruning: Pruning) -> None:
        self.pruning, self.kept = pruning, Kept(layout)
        self.settled = False  # whether the asked sparsity is reached
        self._parts = parts_of(layout, pruning.names)
        if not self._parts:
            raise ValueError("nothing to prune: no named segment has two axes, 256 values and a codec; leave it out")

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that are pruned."""
        if self.kept.mask is None:
            return 0.0
        return 1 - sum(int(self.kept.mask[part].sum()) for part in self._parts) / _values(self._parts)

    def after(self, round: int, master: np.ndarray) -> np.ndarray:
        """The master of a round, pruned as far as the schedule says; a server's momentum revives nothing."""
        share = self.pruning.sparsity_after(round)
        mask = np.ones(master.size, bool) if self.kept.mask is None else self.kept.mask.copy()
        for part in self._parts:
            prune(mask[part], master[part], share)
        self.kept, self.settled = Kept(self.kept.whole, mask), round >= self.pruning.end
        return self.kept.scatter(self.kept.gather(master))


def prune(mask: np.ndarray, weights: np.ndarray, share: float) -> None:
    """Take kept weights out of `mask`, the smallest magnitudes first, until `share` of all are out; never all.

    Of equal ones those that come first. A kept weight that is 0.0 is kept: its gradient may yet move it.
    """
    wanted = min(mask.size - 1, int(share * mask.size + 0.5))
    places = np.flatnonzero(mask)
    more = wanted - (mask.size - places.size)
    if more > 0:
        magnitudes = np.abs(weights[places]).view(np.uint32)  # of floats that are not negative, in the same order
        mask[places[smallest(magnitudes, more)]] = False


def parts_of(layout: Layout, names: tuple[str, ...]) -> list[slice]:
    """Where the named segments that can be pruned lie in the vector."""
    return layout.slices(lambda segment: segment.name in names and prunable(segment))


def zeros(arrays: Mapping[str, np.ndarray], names: tuple[str, ...]) -> float:
    """Share of exact zeros among the prunable weights of a delivered model, as measured."""
    weights = [arrays[name] for name in names if name in arrays and prunable(Segment(name, arrays[name].shape))]
    return sum(int((array == 0).sum()) for array in weights) / max(1, sum(array.size for array in weights))


def _values(parts: list[slice]) -> int:
    return sum(part.stop - part.start for part in parts)
