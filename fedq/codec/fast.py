"""Run the compiled kernels on one run of a blockwise codec, on all cores. Depends on kernels and threads.

The functions raise nothing. They return False, or -1, for invalid values or levels; the numpy path then raises the
error.
"""

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedq.codec.codec import Stream
from fedq.codec.rotation import LARGEST_SCALE, LARGEST_VALUE
from fedq.codec.threads import split

if TYPE_CHECKING:
    from fedq.codec.blockwise import Blockwise, Cut

T = TypeVar("T")
GRAIN = 262_144  # values per thread: the least that is worth another thread
_GROUP = 8  # codes: they fill whole bytes for any number of bits


def encode(
    kernels: ModuleType,
    codec: "Blockwise",
    values: NDArray[np.float32],
    scales: NDArray[np.float32],
    levels: NDArray[np.uint8],
    stream: Stream,
) -> bool:
    """As `encode_run`; False if a value is NaN, infinite or too large. The output is then undefined."""
    codes = levels if codec.bits == 8 else np.empty(values.size, np.uint8)
    turned = np.empty_like(values) if codec.rotate and codec.points is None else values
    stochastic = codec.rounding == "stochastic"

    def work(blocks: slice, part: slice, width: int) -> bool:
        x, part_scales, first = values[part], scales[blocks], stream.first_index + part.start
        if codec.points is not None:
            place, bounds = (width, first, stream.seed), (LARGEST_VALUE, float(LARGEST_SCALE))
            tables = codec.points.thresholds, codec.points.points
            done = kernels.encode_lloyd(x, *place, *tables, codec.error_feedback, *bounds, part_scales, codes[part])
            return bool(done == 0)
        if codec.rotate:
            if not kernels.largest_magnitude(x) <= LARGEST_VALUE:
                return False
            kernels.rotate_run(x, width, first, stream.seed, turned[part])
            x = turned[part]
        limits = np.float32(codec.largest_level), codec.largest_scale
        out = codes[part].view(np.int8)
        return bool(
            kernels.encode_uniform(x, width, *limits, stochastic, first, np.uint64(stream.key), part_scales, out)
        )

    if not all(_over_blocks(codec, values.size, work)):
        return False
    if codec.bits < 8:
        _over_groups(codec.bits, codes, levels, lambda some, packed: kernels.pack(some, codec.bits, packed))
    return True


def decode(
    kernels: ModuleType,
    codec: "Blockwise",
    scales: NDArray[np.float32],
    levels: NDArray[np.uint8],
    values: NDArray[np.float32],
    stream: Stream,
) -> bool:
    """As `decode_run`; False for a level that encode never writes."""
    codes, points = levels, codec.points
    if codec.bits < 8:
        codes, signed = np.empty(values.size, np.uint8), points is None
        unpacked = _over_groups(
            codec.bits, codes, levels, lambda some, packed: kernels.unpack(packed, codec.bits, signed, some)
        )
        if not all(unpacked):
            return False

    def work(blocks: slice, part: slice, width: int) -> bool:
        out, part_scales, first = values[part], scales[blocks], stream.first_index + part.start
        if points is not None:
            kernels.decode_lloyd(codes[part], part_scales, points.points, width, first, stream.seed, out)
            return True
        some = codes[part].view(np.int8)
        if kernels.check_uniform(some, part_scales, width, codec.largest_level, codec.largest_scale) < 0:
            return False
        kernels.decode_uniform(some, part_scales, width, out)
        if codec.rotate:
            kernels.unrotate_run(out, width, first, stream.seed)
        return True

    return all(_over_blocks(codec, values.size, work))


def largest(kernels: ModuleType, codec: "Blockwise", scales: NDArray[np.float32], levels: NDArray[np.int8]) -> float:
    """The largest |level * scale| for evenly spaced unrotated levels; -1 if a level or a scale is out of range."""
    # In this thread: reading the levels takes less time than waking another thread.
    return float(kernels.check_uniform(levels, scales, codec.num_block, codec.largest_level, codec.largest_scale))


def _over_blocks(codec: "Blockwise", num_values: int, work: Callable[[slice, slice, int], T]) -> list[T]:
    """Call work(blocks, values, width) on parts of a run, on all cores, one width of blocks after the other."""
    done: list[T] = []
    for cut in codec.cut(num_values):

        def part(first: int, last: int, cut: "Cut" = cut) -> T:
            values = slice(cut.start + first * cut.width, cut.start + last * cut.width)
            return work(slice(cut.blocks.start + first, cut.blocks.start + last), values, cut.width)

        done += split(part, cut.blocks.stop - cut.blocks.start, grain=max(1, GRAIN // cut.width))
    return done


def _over_groups(
    bits: int,
    codes: NDArray[np.uint8],
    packed: NDArray[np.uint8],
    work: Callable[[NDArray[np.uint8], NDArray[np.uint8]], T],
) -> list[T]:
    """Call work(codes, bytes) on parts that start and stop at a byte."""
    groups = -(-codes.size // _GROUP)

    def of(first: int, last: int) -> T:
        return work(codes[first * _GROUP : last * _GROUP], packed[first * bits : last * bits])

    return split(of, groups, grain=GRAIN // _GROUP)
