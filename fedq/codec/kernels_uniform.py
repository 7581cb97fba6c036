"""Compiled uniform.py and the sums of accumulator.py. Knows blocks and levels; not runs, bits or packets."""

# The types are in the decorators, where numba reads them.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from fedq.codec.compiled import boolean, f4, f8, i8, i64, inner, kernel, reads, u64, void, writes
from fedq.codec.kernel_parts import F32_ONE, F32_ZERO, INFINITE, SMALLEST_SCALE, fill_hashes, largest_bits, mix

U_UNIT = np.float32(2.0**-24)
# Added to |y| < 2^22 (2^51), rounds it to an integer, ties to even, and leaves that in the low bits.
ROUNDER = np.float32(1.5 * 2**23)
ROUNDER_BITS = ROUNDER.view(np.int32)
WIDE_ROUNDER = np.float64(1.5 * 2**52)
WIDE_ROUNDER_BITS = WIDE_ROUNDER.view(np.int64)
WIDE_ROUNDER_LIMIT = 2.0**50
PIECE = 1024  # values worked on at once: the temporaries stay in the fastest cache


@inner
def _round_to_nearest(values, inverse, largest, levels):
    top = np.int32(largest)
    for i in range(values.size):
        level = np.int32(np.float32(values[i] * inverse + ROUNDER).view(np.int32) - ROUNDER_BITS)
        levels[i] = np.int8(min(max(level, np.int32(-top)), top))


@inner
def _round_stochastically(values, inverse, largest, words, levels):
    for i in range(values.size):
        y = values[i] * inverse
        magnitude = min(abs(y), largest)
        below = np.int32(magnitude)
        u = np.float32(np.int32(words[i] >> np.uint32(8))) * U_UNIT
        level = np.int32(below + np.int32(u < magnitude - np.float32(below)))
        levels[i] = np.int8(-level if y < F32_ZERO else level)


@kernel(boolean, reads(f4), i64, f4, f4, boolean, i64, u64, writes(f4), writes(i8))
def encode_uniform(values, block, largest, limit, stochastic, first_index, key, scales, levels):
    """Scales and levels -largest..largest of blocks; False if a value is infinite or NaN. `limit`: of the scale."""
    hashes = np.empty(PIECE // 2 + 1, np.uint64)
    words = hashes.view(np.uint32)
    mixed_key = mix(key)
    for number in range(scales.size):
        start = number * block
        x, out = values[start : start + block], levels[start : start + block]
        magnitude = largest_bits(x)
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
            fill_hashes(mixed_key, np.uint64(index >> 1), hashes[: (skipped + piece.size + 1) >> 1])
            _round_stochastically(piece, inverse, largest, words[skipped : skipped + piece.size], out[at : at + PIECE])
    return True


@kernel(void, reads(i8), reads(f4), i64, writes(f4))
def decode_uniform(levels, scales, block, values):
    """values = level * scale."""
    for number in range(scales.size):
        start = number * block
        part, out, scale = levels[start : start + block], values[start : start + block], scales[number]
        for i in range(part.size):
            out[i] = np.float32(part[i]) * scale


@kernel(f4, reads(i8), reads(f4), i64, i64)
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


@inner
def _add_levels(levels, scale, factor, sums):
    for i in range(levels.size):
        steps = np.float64(np.float32(levels[i]) * scale) * factor + WIDE_ROUNDER
        sums[i] += np.float64(steps).view(np.int64) - WIDE_ROUNDER_BITS


@inner
def _add_values(values, factor, sums):
    for i in range(values.size):
        steps = np.float64(values[i]) * factor + WIDE_ROUNDER
        sums[i] += np.float64(steps).view(np.int64) - WIDE_ROUNDER_BITS


@kernel(void, reads(i8), reads(f4), i64, f8, writes(i64))
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


@kernel(void, reads(f4), f8, writes(i64))
def add_vector(values, factor, sums):
    """sums += rint(value * factor), of which each must be within 2^53."""
    for start in range(0, values.size, PIECE):
        part, out = values[start : start + PIECE], sums[start : start + PIECE]
        if np.float64(np.int32(largest_bits(part)).view(np.float32)) * factor < WIDE_ROUNDER_LIMIT:
            _add_values(part, factor, out)
        else:
            for i in range(part.size):
                out[i] += np.int64(np.rint(np.float64(part[i]) * factor))


@kernel(f4, reads(f4))
def largest_magnitude(values):
    """max |value|; NaN if any is NaN; 0 for no values."""
    return np.int32(largest_bits(values)).view(np.float32)
