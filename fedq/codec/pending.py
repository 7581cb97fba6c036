"""Checked packets that wait to be summed, several in one pass over the sums. Knows parts and kernels; no weights.

The int64 sums are eight times as long as an int8 packet: to read and write them for each packet is most of what an
addition costs. So up to `TOGETHER` packets wait, and are then added in one pass. Integer sums are the same bits in any
order.
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

TOGETHER = 8  # packets at most that are held, which is what the kernel takes
_FEW = 3  # of which each is added by itself
_PIECE = 524_288  # values that a thread works on at once


@dataclass(frozen=True)
class Weighed:
    """A contribution whose every value is known to be good: int8 levels as they came, all else decoded."""

    levels: Sequence[tuple[int, Part]]  # (first value, part)
    values: Sequence[tuple[int, NDArray[np.float32]]]
    factor: float  # steps of a value of 1
    largest: float  # magnitude of a value
    block: int  # of the levels; 1 where there are none

    @classmethod
    def of(cls, parts: Sequence[Part], kernels: ModuleType, *, factor: float) -> "Weighed":
        """MalformedUpdate for what no encoder writes."""
        levels, values, largest, block = [], [], 0.0, 1
        for part in parts:
            codec, most = part.codec, -1.0
            if isinstance(codec, Blockwise) and codec.bits == 8 and not codec.rotate:  # its bytes mean what they say
                most = fast.largest(kernels, codec, part.sides, part.levels.view(np.int8))
                block = codec.num_block
            if most >= 0:
                levels.append((part.run.start, part))
            else:
                decoded, most = _decoded(part, kernels)
                values.append((part.run.start, decoded))
            largest = max(largest, most)
        return cls(levels, values, factor, largest, block)

    def piece(self, run: int, start: int, stop: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Levels and scales of values start..stop of one of `levels`, whole blocks."""
        _, part = self.levels[run]
        return part.levels[start:stop].view(np.int8), part.sides[start // self.block : -(-stop // self.block)]

    def add_values(self, sums: NDArray[np.int64], kernels: ModuleType) -> None:
        """All of `values`."""
        for first, decoded in self.values:

            def work(start: int, stop: int, first: int = first, decoded: NDArray[np.float32] = decoded) -> None:
                kernels.add_vector(decoded[start:stop], self.factor, sums[first + start : first + stop])

            split(work, decoded.size, grain=_PIECE)


class Waiting:
    """Contributions that wait."""

    def __init__(self) -> None:
        self._held: list[Weighed] = []
        self._kernels: ModuleType | None = None  # those that weighed what is held
        self._torn = False

    def put(self, weighed: Weighed, sums: NDArray[np.int64], kernels: ModuleType) -> None:
        """Hold it, or settle if there are enough, or if its blocks are others than those of the packets that wait."""
        if self._held and self._held[0].block != weighed.block:
            self.settle(sums)
        self._kernels = kernels
        self._held.append(weighed)
        # Decoded vectors are as large as what they would save.
        if len(self._held) == TOGETHER or not weighed.levels:
            self.settle(sums)

    def settle(self, sums: NDArray[np.int64]) -> None:
        """Add all to the sums. RuntimeError if that was interrupted before: nobody knows what is in them then."""
        if self._torn:
            raise RuntimeError("an addition was interrupted in the middle: begin anew with another Accumulator")
        if not self._held:
            return
        self._torn = True
        self._settle(sums)
        self._held, self._torn = [], False

    def _settle(self, sums: NDArray[np.int64]) -> None:
        held, kernels = self._held, self._kernels
        assert kernels is not None
        for weighed in held:
            weighed.add_values(sums, kernels)
        pieces = _pieces(held[0])

        def work(first: int, last: int) -> None:
            for run, start, stop in pieces[first:last]:
                at = held[0].levels[run][0]
                _add(held, run, start, stop, sums[at + start : at + stop], kernels)

        if pieces:
            split(work, len(pieces), grain=1)


def _add(
    held: Sequence[Weighed], run: int, start: int, stop: int, sums: NDArray[np.int64], kernels: ModuleType
) -> None:
    """Values start..stop of a run of all of them."""
    block = held[0].block
    pieces = [weighed.piece(run, start, stop) for weighed in held]
    factors = [weighed.factor for weighed in held]
    if len(held) <= _FEW:
        for piece, factor in zip(pieces, factors, strict=True):
            kernels.add_uniform(*piece, block, factor, sums)
        return
    missing = TOGETHER - len(held)  # filled up with what adds nothing
    levels, scales = zip(*pieces, *[pieces[0]] * missing, strict=True)
    kernels.add_eight(levels, scales, (*factors, *[0.0] * missing), block, sums)


def _decoded(part: Part, kernels: ModuleType) -> tuple[NDArray[np.float32], float]:
    """Values, and the largest magnitude; MalformedUpdate for what no encoder writes."""
    if part.codec.name == "float32" and np.isfinite(most := kernels.largest_magnitude(part.sides)):
        return part.sides, float(most)  # as they lie in the packet
    values = np.empty(part.run.stop - part.run.start, np.float32)
    part.decode(values)
    return values, float(kernels.largest_magnitude(values))


def _pieces(weighed: Weighed) -> list[tuple[int, int, int]]:
    """(run, start, stop): about _PIECE values each, whole blocks."""
    step = max(1, _PIECE // weighed.block) * weighed.block
    return [
        (run, start, min(start + step, part.levels.size))
        for run, (_, part) in enumerate(weighed.levels)
        for start in range(0, part.levels.size, step)
    ]
