"""Which weights of the global model are zero for good, and when. Knows the layout and vectors; not messages or models.

Magnitude pruning while training goes on (Zhu & Gupta 2017, arXiv:1710.01878), on the float32 master; how much of each
layer goes is found by LAMP scores (Lee et al. 2021, arXiv:2010.07611). Clients see masks, and choose none. Under DP the
master is made of noised updates, so the mask is post-processing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedq.codec import Layout, MaskedLayout, Segment
from fedq.codec.mask import prunable
from fedq.codec.sparse import smallest


@dataclass(frozen=True)
class Pruning:
    """What is pruned, how far, and in which rounds."""

    names: tuple[str, ...]  # segments; those too small to be worth it stay dense
    sparsity: float  # share of them all that is zero at the end, in (0, 1)
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
        self.pruning, self.kept = pruning, MaskedLayout(layout)
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
        prune(mask, master, self._parts, share)
        self.kept, self.settled = MaskedLayout(self.kept.whole, mask), round >= self.pruning.end
        return self.kept.scatter(self.kept.gather(master))


def prune(mask: np.ndarray, weights: np.ndarray, parts: Sequence[slice], share: float) -> None:
    """Take kept weights out of `mask`, the lowest scores first, until `share` of all in `parts` are out.

    One of each part stays. In a part the smallest magnitudes go first, of equal ones those that come first. A kept
    weight that is 0.0 is kept while enough others are out: its gradient may yet move it.
    """
    places = [part.start + np.flatnonzero(mask[part]) for part in parts]
    total = _values(parts)
    more = min(total - len(parts), int(share * total + 0.5)) - (total - sum(kept.size for kept in places))
    if more > 0:
        scores = np.concatenate([_scores(weights[kept]) for kept in places])
        # Of floats that are not negative, in the same order.
        mask[np.concatenate(places)[smallest(scores.view(np.uint64), more)]] = False


def _scores(weights: np.ndarray) -> np.ndarray:
    """LAMP: a weight's square over the sum of its own and those of all that outlast it; infinite for the last.

    What its loss would take of the layer's output, whatever the layer's scale: so a small last layer keeps most of its
    weights, and an embedding of large ones does not outlive all others.
    """
    order = np.argsort(np.abs(weights), kind="stable")
    squares = np.square(weights[order], dtype=np.float64)
    outlasting = np.cumsum(squares[::-1])[::-1]
    scores = np.empty(weights.size)
    scores[order] = np.divide(squares, outlasting, out=np.zeros(weights.size), where=outlasting > 0)
    scores[order[-1]] = np.inf
    return scores


def parts_of(layout: Layout, names: tuple[str, ...]) -> list[slice]:
    """Where the named segments that can be pruned lie in the vector."""
    return layout.slices(lambda segment: segment.name in names and prunable(segment))


def zeros(arrays: Mapping[str, np.ndarray], names: tuple[str, ...]) -> float:
    """Share of exact zeros among the prunable weights of a delivered model, as measured."""
    weights = [arrays[name] for name in names if name in arrays and prunable(Segment(name, arrays[name].shape))]
    return sum(int((array == 0).sum()) for array in weights) / max(1, sum(array.size for array in weights))


def _values(parts: Sequence[slice]) -> int:
    return sum(part.stop - part.start for part in parts)
