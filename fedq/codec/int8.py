"""Blockwise symmetric int8. Knows one run of values; not packets.

Each block of `block` values (the last of a run may be shorter) has one float32 scale, and one level in
-127..127 for each value, which decodes to level * scale. With A the largest magnitude in the block:

    scale = 0 if A = 0, else min(max(A / 127, 2^-126), LARGEST_SCALE)
    y     = value * (1 / scale), clipped to -127..127
    nearest:     level = y rounded to the nearest integer, ties to even
    stochastic:  level = sign(y) * (floor(|y|) + 1 if u < |y| - floor(|y|) else floor(|y|)),
                 u = (word(i) >> 8) * 2^-24, word as in rounding.py, i = the value's index in the whole vector

Every operation above rounds once, to float32: a compiled kernel gives the same bits if it neither fuses nor
widens. Scales are never subnormal, so they do not depend on a flush-to-zero mode, and 127 * LARGEST_SCALE is
finite, so no packet decodes to infinity.

Error: at most 1/2 scale (nearest) or 1 scale (stochastic), plus 2^-15 scale for the float32 arithmetic: three
products and quotients of relative error 2^-24 each on at most 127 scales, and 2^-24 for the grid of u, add up
to 382 * 2^-24. By the same sum the stochastic error has a mean of at most 2^-15 scale.
"""

import struct
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from fedq.codec.malformed import MalformedUpdate
from fedq.codec.rounding import random_words

Rounding = Literal["nearest", "stochastic"]
SMALLEST_SCALE = np.float32(2.0**-126)
# float32(FLT_MAX / 127) * 127 rounds to infinity; the float32 below it does not.
LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))
LARGEST_BLOCK = 65536
_CHUNK = 65536  # values worked on at once: the temporaries stay in the cache
_OPTIONS = struct.Struct("<IB3x")


@dataclass(frozen=True)
class Int8:
    """One byte a value and one float32 scale for each `block` values."""

    block: int = 256
    rounding: Rounding = "nearest"

    name: ClassVar[str] = "int8"
    wire_id: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if type(self.block) is not int or not 16 <= self.block <= LARGEST_BLOCK:
            raise ValueError(f"codec.block={self.block!r}: must be an integer 16..{LARGEST_BLOCK}; try 256")
        if self.rounding not in get_args(Rounding):
            raise ValueError(f"codec.rounding={self.rounding!r}: must be nearest or stochastic")

    def options(self) -> bytes:
        return _OPTIONS.pack(self.block, get_args(Rounding).index(self.rounding))

    @classmethod
    def from_options(cls, options: bytes) -> Self:
        block, rounding = _OPTIONS.unpack(options)
        if rounding >= len(get_args(Rounding)) or options[5:] != bytes(3):
            raise ValueError(f"options={options.hex()}: rounding 0 or 1, then three zero bytes")
        return cls(block=block, rounding=get_args(Rounding)[rounding])

    def num_sides(self, num_values: int) -> int:
        return -(-num_values // self.block)

    def num_level_bytes(self, num_values: int) -> int:
        return num_values

    def encode_run(
        self,
        values: NDArray[np.float32],
        sides: NDArray[np.float32],
        levels: NDArray[np.uint8],
        *,
        first_index: int,
        key: int,
    ) -> None:
        signed = levels.view(np.int8)
        for start, stop, width in self._pieces(values.size):
            first_block, last_block = start // self.block, -(-stop // self.block)
            blocks = values[start:stop].reshape(-1, width)
            scales = _scales(blocks)
            sides[first_block:last_block] = scales
            with np.errstate(under="ignore"):
                y = blocks * _inverse(scales)[:, None]
            if self.rounding == "nearest":
                # |y| is at most 127 + 2^-16, so rounding is the clipping.
                np.rint(y, out=y)
            else:
                words = random_words(key=key, first_index=first_index + start, count=stop - start)
                y = _round_stochastically(y, words.reshape(-1, width))
            signed[start:stop] = y.reshape(-1)

    def decode_run(self, sides: NDArray[np.float32], levels: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
        # signbit, not < 0: minus zero is a scale that encode never writes.
        good = ~np.signbit(sides) & (sides <= LARGEST_SCALE) & ((sides >= SMALLEST_SCALE) | (sides == 0))
        if not good.all():
            at = int(np.argmin(good))
            raise MalformedUpdate("scale", f"scale {sides[at]:g} of block {at}: must be 0 or 2^-126..2.68e36")
        signed = levels.view(np.int8)
        for start, stop, width in self._pieces(values.size):
            piece = signed[start:stop]
            if piece.min() == -128:
                raise MalformedUpdate("level", "level -128: levels are -127..127")
            scales = sides[start // self.block : -(-stop // self.block)]
            out = values[start:stop].reshape(-1, width)
            np.multiply(piece.reshape(-1, width), scales[:, None], out=out, dtype=np.float32)

    def _pieces(self, num_values: int) -> list[tuple[int, int, int]]:
        """[start, stop) and block width: about _CHUNK values of whole blocks each, then the short block."""
        whole = num_values - num_values % self.block
        step = max(1, _CHUNK // self.block) * self.block
        pieces = [(start, min(start + step, whole), self.block) for start in range(0, whole, step)]
        if whole < num_values:
            pieces.append((whole, num_values, num_values - whole))
        return pieces


def _scales(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    largest = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
    with np.errstate(under="ignore"):
        scales: NDArray[np.float32] = np.clip(largest / np.float32(127), SMALLEST_SCALE, LARGEST_SCALE)
    scales[largest == 0] = 0
    return scales


def _inverse(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    inverse = np.zeros_like(scales)
    np.divide(np.float32(1), scales, out=inverse, where=scales > 0)
    return inverse


def _round_stochastically(y: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Up in magnitude with probability frac(|y|), so E[result] = y  (QSGD, arXiv:1610.02132)."""
    magnitude = np.abs(y)
    # The largest value may land a rounding error above 127, and must not be rounded up to 128.
    np.minimum(magnitude, np.float32(127), out=magnitude)
    below = np.floor(magnitude)
    # The fraction is exact; the rounded sum magnitude + u would not be, and would bias the result.
    magnitude -= below
    u = (words >> np.uint32(8)).astype(np.float32)
    u *= np.float32(2.0**-24)
    below += u < magnitude
    return np.copysign(below, y)
