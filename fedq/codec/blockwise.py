"""Codecs with a level of a few bits per value and a scale per block. Depends on one run of values; not on packets.

    nearest, stochastic    evenly spaced levels (uniform.py); for 1 bit see below
    lloyd_max              levels for Gaussian values (lloyd.py), for a rotated block

One bit without Lloyd-Max, where A is the largest and M the mean magnitude of a block: `nearest` sends the sign with the
scale M (the least squared error). `stochastic` sends A where half(i) < rint((value / A + 1) * 2^15), else -A: the mean
is the value, to 2^-16 A.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fedq.codec import fast, jit
from fedq.codec.bits import pack, packed_bytes, signed, unpack
from fedq.codec.codec import Stream
from fedq.codec.finite import NonFiniteError, largest_magnitude
from fedq.codec.lloyd import LLOYD_MAX, Points, to_codes, tree_sum
from fedq.codec.malformed import MalformedUpdate
from fedq.codec.options import Options, Rounding, check_block, check_rounding, check_switches
from fedq.codec.rotation import LARGEST_SCALE as LARGEST_ROTATED_SCALE
from fedq.codec.rotation import LARGEST_VALUE, rotate, unrotate
from fedq.codec.rounding import random_halves
from fedq.codec.uniform import SMALLEST_SCALE, to_levels
from fedq.codec.uniform import largest_scale as _largest_scale

ROTATED_BLOCK = 4096  # values; large enough to mix, small enough for a core's cache
LEAST_ROTATED_BLOCK = 256
LEAST_PIECE = 128  # values; smallest rotated block in the rest of a run after the whole blocks
_CHUNK = 65536  # values per step: the temporaries stay in the cache


@dataclass(frozen=True)
class Cut:
    """Adjacent blocks of one width."""

    blocks: slice
    start: int  # first value
    width: int


@dataclass(frozen=True)
class Blockwise:
    """`bits` per value and one float32 scale for each `block` values.

    `block=None`: the codec's own size, or 4096 with `rotate`. `rounding=None`: Lloyd-Max with `rotate` and at most
    4 bits, else nearest; at 8 bits evenly spaced levels are as good. `rotate`: apply a randomized Hadamard rotation, so
    that outliers cost less. `error_feedback`: error feedback, the quantization error is added to the next update; with
    Lloyd-Max the scale then has the least error instead of no bias. `entropy`: the levels are deflated.
    """

    block: int | None = None
    rounding: Rounding | None = None
    rotate: bool = False
    error_feedback: bool = False
    entropy: bool = False

    name: ClassVar[str]
    wire_id: ClassVar[int]
    bits: ClassVar[int]
    own_block: ClassVar[int]

    def __post_init__(self) -> None:
        check_switches(rotate=self.rotate, error_feedback=self.error_feedback, entropy=self.entropy)
        has_points = self.rotate and self.bits in LLOYD_MAX
        if self.block is None:
            object.__setattr__(self, "block", ROTATED_BLOCK if self.rotate else self.own_block)
        if self.rounding is None:
            object.__setattr__(self, "rounding", "lloyd_max" if has_points else "nearest")
        block = check_block(self.block)
        if self.rotate and (block < LEAST_ROTATED_BLOCK or block & (block - 1)):
            raise ValueError(
                f"codec.block={block}: with rotate it must be a power of two from 256; try {ROTATED_BLOCK}"
            )
        if has_points:
            check_rounding(self.rounding, ("nearest", "stochastic", "lloyd_max"))
        else:
            why = "; lloyd_max needs rotate=true and int4, int2 or sign"
            check_rounding(self.rounding, ("nearest", "stochastic"), why)

    @property
    def uses_seed(self) -> bool:
        return self.rotate

    def options(self) -> bytes:
        return Options(self.num_block, self._rounding, self.rotate, self.error_feedback, self.entropy).to_bytes()

    @classmethod
    def from_options(cls, options: bytes) -> Self:
        parsed = Options.from_bytes(options)
        codec = cls(parsed.block, parsed.rounding, parsed.rotate, parsed.error_feedback, parsed.entropy)
        if codec.options() != options:
            raise ValueError(f"options={options.hex()}: {cls.name} sends every value, so the last four bytes must be 0")
        return codec

    def num_scales(self, num_values: int) -> int:
        cuts = self.cut(num_values)
        return int(cuts[-1].blocks.stop) if cuts else 0

    def num_level_bytes(self, num_values: int) -> int:
        return packed_bytes(self.num_coded(num_values), self.bits)

    def num_coded(self, num_values: int) -> int:
        """Number of codes for a run. With `rotate` the run is padded with zeros to a multiple of 128 values."""
        return -(-num_values // LEAST_PIECE) * LEAST_PIECE if self.rotate else num_values

    def encode_run(
        self, values: NDArray[np.float32], scales: NDArray[np.float32], levels: NDArray[np.uint8], stream: Stream
    ) -> None:
        if self.rotate and (missing := self.num_coded(values.size) - values.size):
            values = np.concatenate([values, np.zeros(missing, np.float32)])
        kernels = self._kernels(stream)
        if kernels is not None and fast.encode(kernels, self, values, scales, levels, stream):
            return
        codes = levels.view(np.int8) if self.bits == 8 else np.empty(values.size, np.int8)
        for blocks, start, stop in self._pieces(values.size):
            piece, here = values[start:stop].reshape(blocks.stop - blocks.start, -1), stream.at(start)
            if self.rotate:
                _check_magnitude(piece)
                piece = rotate(piece, first_index=here.first_index, seed=here.seed)
            scales[blocks], quantized = self._quantize(piece, here)
            codes[start:stop] = quantized.reshape(-1)
        if self.bits < 8:
            pack(codes, self.bits, levels)

    def decode_run(
        self, scales: NDArray[np.float32], levels: NDArray[np.uint8], values: NDArray[np.float32], stream: Stream
    ) -> None:
        self.check_scales(scales)
        coded = self.num_coded(values.size)
        if coded == values.size:
            self._decode(scales, levels, values, stream)
        else:
            filled = np.empty(coded, np.float32)
            self._decode(scales, levels, filled, stream)
            values[:] = filled[: values.size]

    def _decode(
        self, scales: NDArray[np.float32], levels: NDArray[np.uint8], values: NDArray[np.float32], stream: Stream
    ) -> None:
        """As `decode_run`, for as many values as there are codes."""
        kernels = self._kernels(stream)
        if kernels is not None and fast.decode(kernels, self, scales, levels, values, stream):
            return
        codes = levels.view(np.int8) if self.bits == 8 else self._unpacked(levels, values.size)
        for blocks, start, stop in self._pieces(values.size):
            part_scales, piece = scales[blocks], codes[start:stop].reshape(blocks.stop - blocks.start, -1)
            if self.bits == 8 and piece.min() == -128:
                raise MalformedUpdate("level", "level -128: levels are -127..127")
            out = values[start:stop].reshape(piece.shape)
            points = piece if self.points is None else self.points.points[piece]
            np.multiply(points, part_scales[:, None], out=out, dtype=np.float32)
            if self.rotate:
                unrotate(out, first_index=stream.first_index + start, seed=stream.seed)

    def _kernels(self, stream: Stream) -> ModuleType | None:
        """The compiled kernels for a run of this codec, or None; one bit without Lloyd-Max has no kernel."""
        return None if self.bits == 1 and self.rounding != "lloyd_max" else jit.kernels(stream.num_values)

    @property
    def num_block(self) -> int:
        """Number of values that share a scale."""
        assert self.block is not None  # set in __post_init__
        return self.block

    @property
    def _rounding(self) -> Rounding:
        assert self.rounding is not None
        return self.rounding

    @property
    def points(self) -> Points | None:
        """The value of each code in units of the scale; None where a code is its own level."""
        return LLOYD_MAX[self.bits] if self.rounding == "lloyd_max" or self.bits == 1 else None

    @property
    def largest_level(self) -> int:
        """The largest of the evenly spaced levels."""
        return max(1, int(2 ** (self.bits - 1)) - 1)

    @property
    def largest_scale(self) -> np.float32:
        """The largest scale for which every level, and every value of a rotated block, is finite."""
        return LARGEST_ROTATED_SCALE if self.rotate else _largest_scale(self.largest_level)

    def cut(self, num_values: int) -> list["Cut"]:
        """The blocks of a run: whole blocks, then the rest, which `rotate` cuts into powers of two from 128 on."""
        whole, rest = divmod(self.num_coded(num_values), self.num_block)
        cuts = [Cut(slice(0, whole), 0, self.num_block)] if whole else []
        number, start = whole, whole * self.num_block
        while rest:
            width = 1 << (rest.bit_length() - 1) if self.rotate else rest
            cuts.append(Cut(slice(number, number + 1), start, width))
            number, start, rest = number + 1, start + width, rest - width
        return cuts

    def _pieces(self, num_values: int) -> list[tuple[slice, int, int]]:
        """Groups of blocks of one length, about _CHUNK values each: (blocks, start value, stop value)."""
        pieces = []
        for cut in self.cut(num_values):
            step = max(1, _CHUNK // cut.width)
            for first in range(cut.blocks.start, cut.blocks.stop, step):
                last = min(first + step, cut.blocks.stop)
                start = cut.start + (first - cut.blocks.start) * cut.width
                pieces.append((slice(first, last), start, start + (last - first) * cut.width))
        return pieces

    def _quantize(
        self, blocks: NDArray[np.float32], here: Stream
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | NDArray[np.uint8]]:
        if self.rounding == "lloyd_max":
            return to_codes(blocks, LLOYD_MAX[self.bits], error_feedback=self.error_feedback)
        if self.bits == 1:
            return self._signs(blocks, here)
        key = here.key if self.rounding == "stochastic" else None
        return to_levels(blocks, self.largest_level, self.largest_scale, first_index=here.first_index, key=key)

    def _signs(self, blocks: NDArray[np.float32], here: Stream) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        magnitude = np.abs(blocks)
        if self.rounding == "stochastic":
            scales = magnitude.max(axis=1)
        else:
            scales = (tree_sum(magnitude.astype(np.float64)) / blocks.shape[1]).astype(np.float32)
        if not np.isfinite(scales).all():
            raise NonFiniteError
        present = scales > 0
        scales = np.where(present, np.clip(scales, SMALLEST_SCALE, self.largest_scale), np.float32(0))
        if self.rounding == "nearest":
            return scales, (blocks > 0).astype(np.uint8)
        with np.errstate(under="ignore"):
            y = np.clip(blocks / np.where(present, scales, np.float32(1))[:, None], np.float32(-1), np.float32(1))
        halves = random_halves(key=here.key, first_index=here.first_index, count=y.size).reshape(y.shape)
        return scales, (halves < np.rint((y + np.float32(1)) * np.float32(2.0**15))).astype(np.uint8)

    def _unpacked(self, levels: NDArray[np.uint8], num_values: int) -> NDArray[np.int8]:
        codes = unpack(levels, self.bits, num_values)
        if self.points is not None:
            return codes.view(np.int8)
        if (codes == 2 ** (self.bits - 1)).any():
            largest = self.largest_level
            raise MalformedUpdate("level", f"level {-largest - 1}: levels are {-largest}..{largest}")
        return signed(codes, self.bits)

    def check_scales(self, scales: NDArray[np.float32]) -> None:
        """MalformedUpdate for a scale that encode never writes."""
        # signbit, not < 0: encode never writes minus zero.
        good = ~np.signbit(scales) & (scales <= self.largest_scale) & ((scales >= SMALLEST_SCALE) | (scales == 0))
        if not good.all():
            at = int(np.argmin(good))
            limit = f"{self.largest_scale:.3g}"
            raise MalformedUpdate("scale", f"scale {scales[at]:g} of block {at}: must be 0 or 2^-126..{limit}")


def _check_magnitude(values: NDArray[np.float32]) -> None:
    largest = largest_magnitude(values)
    if not np.isfinite(largest):
        raise NonFiniteError
    if largest > LARGEST_VALUE:
        raise ValueError(
            f"value of magnitude {largest:g}: a rotated codec carries at most {LARGEST_VALUE:g}; "
            "use codec.rotate=false or lower the learning rate"
        )
