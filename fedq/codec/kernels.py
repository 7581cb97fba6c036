"""The loops of the codecs, compiled by numba. Knows arrays; not packets, threads or errors.

Bit for bit what uniform.py, accumulator.py, bits.py, rotation.py and lloyd.py compute with numpy. Each works on a
contiguous part of a run that starts and stops at blocks, so that threads can share a run. All in one file: numba
notices a change of the file that a cached kernel is in, but not of one that this imports from.

To keep the bits: no fastmath; float32 meets float32 only (with a Python float numba widens); uint64 meets uint64 only
(with int64 numba turns to float64). To be vectorised: arrays are sliced first and then indexed from 0, and the largest
magnitude is found among the integer bits, which order as magnitudes do and put infinity and NaN last.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

_SETTINGS = {"nogil": True, "error_model": "numpy"}

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)
ONE = np.uint64(1)

F32_ONE = np.float32(1)
F32_ZERO = np.float32(0)
SMALLEST_SCALE = np.float32(2.0**-126)
MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits but the sign
INFINITE = np.int32(0x7F800000)
U_UNIT = np.float32(2.0**-24)
# Added to |y| < 2^22 (2^51), rounds it to an integer, ties to even, and leaves that in the low bits.
ROUNDER = np.float32(1.5 * 2**23)
ROUNDER_BITS = ROUNDER.view(np.int32)
WIDE_ROUNDER = np.float64(1.5 * 2**52)
WIDE_ROUNDER_BITS = WIDE_ROUNDER.view(np.int64)
WIDE_ROUNDER_LIMIT = 2.0**50
PIECE = 1024  # values worked on at once: the temporaries stay in the fastest cache


class Kernel:
    """Compiled, or read from numba's cache, at its first call, and for one signature whatever it is called with."""

    def __init__(self, function: Callable[..., Any], result: Any, arguments: tuple[Any, ...]) -> None:
        self._function, self._signature = function, result(*arguments)
        self._dispatcher = njit(cache=True, **_SETTINGS)(function)
        self._lock = threading.Lock()
        self._compiled: Any = None
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def __call__(self, *arguments: Any) -> Any:
        return (self._compiled or self.compile())(*arguments)

    def compile(self) -> Any:
        with self._lock:
            if self._compiled is None:
                try:
                    self._dispatcher.compile(self._signature)
                except OSError:  # the cache cannot be written: the disk is full, say
                    self._dispatcher = njit(**_SETTINGS)(self._function)
                    self._dispatcher.compile(self._signature)
                self._dispatcher.disable_compile()
                self._compiled = self._dispatcher
        return self._compiled


def _in(dtype: Any) -> Any:
    """What any contiguous array converts to: a packet is read-only, and its floats may lie anywhere."""
    return types.Array(dtype, 1, "C", readonly=True, aligned=False)


def _out(dtype: Any) -> Any:
    return types.Array(dtype, 1, "C", aligned=False)


def _kernel(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Kernel]:
    return lambda function: Kernel(function, result, arguments)


_inner = njit(inline="never", **_SETTINGS)
_i8, _u8, _f4, _f8, _i64, _u64 = types.int8, types.uint8, types.float32, types.float64, types.int64, types.uint64


@_inner
def _mix(z):
    z = z ^ (z >> np.uint64(30))
    z = z * FIRST
    z = z ^ (z >> np.uint64(27))
    z = z * SECOND
    return z ^ (z >> np.uint64(31))


@_inner
def _fill_hashes(mixed_key, first, hashes):
    """Hashes first, first + 1, ... of a key that is mixed already."""
    for i in range(hashes.size):
        hashes[i] = _mix(mixed_key + (first + np.uint64(i) + ONE) * GOLDEN)


@_inner
def _largest_bits(values):
    """The bits of the largest |value|; INFINITE or above if any is infinite or NaN."""
    bits = values.view(np.int32)
    largest = np.int32(0)
    for i in range(bits.size):
        largest = max(largest, np.int32(bits[i] & MAGNITUDE))
    return largest


@_inner
def _round_to_nearest(values, inverse, largest, levels):
    top = np.int32(largest)
    for i in range(values.size):
        level = np.int32(np.float32(values[i] * inverse + ROUNDER).view(np.int32) - ROUNDER_BITS)
        levels[i] = np.int8(min(max(level, np.int32(-top)), top))


@_inner
def _round_stochastically(values, inverse, largest, words, levels):
    for i in range(values.size):
        y = values[i] * inverse
        magnitude = min(abs(y), largest)
        below = np.int32(magnitude)
        u = np.float32(np.int32(words[i] >> np.uint32(8))) * U_UNIT
        level = np.int32(below + np.int32(u < magnitude - np.float32(below)))
        levels[i] = np.int8(-level if y < F32_ZERO else level)


@_kernel(types.boolean, _in(_f4), _i64, _f4, _f4, types.boolean, _i64, _u64, _out(_f4), _out(_i8))
def encode_uniform(values, block, largest, limit, stochastic, first_index, key, scales, levels):
    """Scales and levels -largest..largest of blocks; False if a value is infinite or NaN. `limit`: of the scale."""
    hashes = np.empty(PIECE // 2 + 1, np.uint64)
    words = hashes.view(np.uint32)
    mixed_key = _mix(key)
    for number in range(scales.size):
        start = number * block
        x, out = values[start : start + block], levels[start : start + block]
        magnitude = _largest_bits(x)
        if magnitude >= INFINITE:
            return False
        scale = inverse = F32_ZERO
        if magnitude > 0:
            scale = min(max(np.int32(magnitude).view(np.float32) / largest, SMALLEST_SCALE), limit)
            inverse = F32_ONE / scale
        scales[number] = scale
        if not stochastic:
            _round_to_nearest(x, inverse, largest, out)
            continue
        for at in range(0, x.size, PIECE):
            piece = x[at : at + PIECE]
            index = first_index + start + at
            skipped = index & 1
            _fill_hashes(mixed_key, np.uint64(index >> 1), hashes[: (skipped + piece.size + 1) >> 1])
            _round_stochastically(piece, inverse, largest, words[skipped : skipped + piece.size], out[at : at + PIECE])
    return True


@_kernel(types.void, _in(_i8), _in(_f4), _i64, _out(_f4))
def decode_uniform(levels, scales, block, values):
    """values = level * scale."""
    for number in range(scales.size):
        start = number * block
        part, out, scale = levels[start : start + block], values[start : start + block], scales[number]
        for i in range(part.size):
            out[i] = np.float32(part[i]) * scale


@_kernel(_f4, _in(_i8), _in(_f4), _i64, _i64)
def check_uniform(levels, scales, block, largest):
    """The largest |level * scale|, or -1 if a level is not in -largest..largest. The scales must be checked already."""
    greatest = F32_ZERO
    for number in range(scales.size):
        start = number * block
        part = levels[start : start + block]
        low = high = np.int8(0)
        for i in range(part.size):
            low = min(low, part[i])
            high = max(high, part[i])
        most = max(-np.int64(low), np.int64(high))
        if most > largest:
            return np.float32(-1)
        # Rounding is monotonic: the largest level gives the largest product.
        greatest = max(greatest, np.float32(most) * scales[number])
    return greatest


@_inner
def _add_levels(levels, scale, factor, sums):
    for i in range(levels.size):
        steps = np.float64(np.float32(levels[i]) * scale) * factor + WIDE_ROUNDER
        sums[i] += np.float64(steps).view(np.int64) - WIDE_ROUNDER_BITS


@_inner
def _add_values(values, factor, sums):
    for i in range(values.size):
        steps = np.float64(values[i]) * factor + WIDE_ROUNDER
        sums[i] += np.float64(steps).view(np.int64) - WIDE_ROUNDER_BITS


@_kernel(types.void, _in(_i8), _in(_f4), _i64, _f8, _out(_i64))
def add_uniform(levels, scales, block, factor, sums):
    """sums += rint(level * scale * factor), of which each must be within 2^53."""
    for number in range(scales.size):
        start = number * block
        part, out, scale = levels[start : start + block], sums[start : start + block], scales[number]
        if np.float64(scale) * factor * 128.0 < WIDE_ROUNDER_LIMIT:
            _add_levels(part, scale, factor, out)
        else:
            for i in range(part.size):
                out[i] += np.int64(np.rint(np.float64(np.float32(part[i]) * scale) * factor))


@_kernel(types.void, _in(_f4), _f8, _out(_i64))
def add_vector(values, factor, sums):
    """sums += rint(value * factor), of which each must be within 2^53."""
    for start in range(0, values.size, PIECE):
        part, out = values[start : start + PIECE], sums[start : start + PIECE]
        if np.float64(np.int32(_largest_bits(part)).view(np.float32)) * factor < WIDE_ROUNDER_LIMIT:
            _add_values(part, factor, out)
        else:
            for i in range(part.size):
                out[i] += np.int64(np.rint(np.float64(part[i]) * factor))


@_kernel(_f4, _in(_f4))
def largest_magnitude(values):
    """max |value|; NaN if any is NaN; 0 for no values."""
    return np.int32(_largest_bits(values)).view(np.float32)
