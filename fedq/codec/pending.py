"""Pending updates: checked packets that are summed several at a time, in one pass over the sums.

The module depends on packets and kernels; it does not know weights. The int64 sums are eight times as long as an int8
packet: to read and write them for each packet is most of the cost of an addition. So up to `MAX_PENDING` packets are
pending, and are then added in one pass. Integer sums have the same bits in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from fedq.codec import fast
from fedq.codec.blockwise import Blockwise
from fedq.codec.packet import Part
from fedq.codec.threads import split

MAX_PENDING = 8  # most pending packets; the kernel takes exactly this many
_FEW = 3  # up to this many packets are added one by one
_PIECE = 524_288  # values per step of a thread


@dataclass(frozen=True)
class WeightedUpdate:
    """A contribution whose values are all checked: int8 levels as received, everything else decoded."""

    levels: Sequence[tuple[int, Part]]  # (first value, part)
    values: Sequence[tuple[int, NDArray[np.float32]]]
    factor: float  # steps for the value 1
    largest: float  # largest |value|
    block: int  # values per scale of the levels; 1 if there are no levels

    @classmethod
    def of(cls, parts: Sequence[Part], kernels: ModuleType, *, factor: float) -> "WeightedUpdate":
        """Check the parts of a packet; MalformedUpdate for what no encoder writes."""
        levels, values, largest, block = [], [], 0.0, 1
        for part in parts:
            codec, most = part.codec, -1.0
            if isinstance(codec, Blockwise) and codec.bits == 8 and not codec.rotate:  # a byte is a level
                most = fast.largest(kernels, codec, part.scales, part.levels.view(np.int8))
                block = codec.num_block
            if most >= 0:
                levels.append((part.run.start, part))
            else:
                decoded, most = _decoded(part, kernels)
                values.append((part.run.start, decoded))
            largest = max(largest, most)
        return cls(levels, values, factor, largest, block)

    def piece(self, run: int, start: int, stop: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Levels and scales of values start..stop (whole blocks) of one of `levels`."""
        _, part = self.levels[run]
        return part.levels[start:stop].view(np.int8), part.scales[start // self.block : -(-stop // self.block)]

    def add_values(self, sums: NDArray[np.int64], kernels: ModuleType) -> None:
        """Add all of `values` to `sums`, in place."""
        for first, decoded in self.values:

            def work(start: int, stop: int, first: int = first, decoded: NDArray[np.float32] = decoded) -> None:
                kernels.add_vector(decoded[start:stop], self.factor, sums[first + start : first + stop])

            split(work, decoded.size, grain=_PIECE)


class PendingUpdates:
    """The contributions that are not yet in the sums."""

    def __init__(self) -> None:
        self._updates: list[WeightedUpdate] = []
        self._kernels: ModuleType | None = None  # the kernels that checked the pending contributions
        self._interrupted = False

    def put(self, weighted: WeightedUpdate, sums: NDArray[np.int64], kernels: ModuleType) -> None:
        """Keep a contribution. Add all to `sums` first or afterwards if there are enough, or if the blocks differ."""
        if self._updates and self._updates[0].block != weighted.block:
            self.settle(sums)
        self._kernels = kernels
        self._updates.append(weighted)
        # A pending decoded vector takes as much memory traffic as it would save.
        if len(self._updates) == MAX_PENDING or not weighted.levels:
            self.settle(sums)

    def settle(self, sums: NDArray[np.int64]) -> None:
        """Add all pending contributions to `sums`. RuntimeError if an earlier addition was interrupted."""
        if self._interrupted:
            raise RuntimeError("an addition was interrupted, so the sums are wrong: use a new Accumulator")
        if not self._updates:
            return
        self._interrupted = True
        self._settle(sums)
        self._updates, self._interrupted = [], False

    def _settle(self, sums: NDArray[np.int64]) -> None:
        held, kernels = self._updates, self._kernels
        assert kernels is not None
        for weighted in held:
            weighted.add_values(sums, kernels)
        pieces = _pieces(held[0])

        def work(first: int, last: int) -> None:
            for run, start, stop in pieces[first:last]:
                at = held[0].levels[run][0]
                _add(held, run, start, stop, sums[at + start : at + stop], kernels)

        if pieces:
            split(work, len(pieces), grain=1)


def _add(
    held: Sequence[WeightedUpdate], run: int, start: int, stop: int, sums: NDArray[np.int64], kernels: ModuleType
) -> None:
    """Add values start..stop of one run of all pending contributions."""
    block = held[0].block
    pieces = [weighted.piece(run, start, stop) for weighted in held]
    factors = [weighted.factor for weighted in held]
    if len(held) <= _FEW:
        for piece, factor in zip(pieces, factors, strict=True):
            kernels.add_uniform(*piece, block, factor, sums)
        return
    missing = MAX_PENDING - len(held)  # the kernel takes MAX_PENDING packets: fill up with zeros
    levels, scales = zip(*pieces, *[pieces[0]] * missing, strict=True)
    kernels.add_eight(levels, scales, (*factors, *[0.0] * missing), block, sums)


def _decoded(part: Part, kernels: ModuleType) -> tuple[NDArray[np.float32], float]:
    """Values and their largest magnitude; MalformedUpdate for what no encoder writes."""
    if part.codec.name == "float32" and np.isfinite(most := kernels.largest_magnitude(part.scales)):
        return part.scales, float(most)  # a view of the packet
    values = np.empty(part.run.stop - part.run.start, np.float32)
    part.decode(values)
    return values, float(kernels.largest_magnitude(values))


def _pieces(weighted: WeightedUpdate) -> list[tuple[int, int, int]]:
    """(run, start, stop): parts of about _PIECE values each, whole blocks."""
    step = max(1, _PIECE // weighted.block) * weighted.block
    return [
        (run, start, min(start + step, part.levels.size))
        for run, (_, part) in enumerate(weighted.levels)
        for start in range(0, part.levels.size, step)
    ]
