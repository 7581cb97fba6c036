"""The compiled uniform.py and the sums of accumulator.py. Depends on blocks and levels; not on runs or packets."""

# The types are in the decorators, where numba reads them.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from fedq.codec.kernel_parts import F32_ONE, F32_ZERO, INFINITE, SMALLEST_SCALE, fill_hashes, largest_bits, mix
from fedq.core.compiled import boolean, eight, f4, f8, i8, i64, inner, kernel, reads, u64, void, writes

FIXED_POINT = np.float32(2.0**16)
# Adding this to |y| < 2^22 (2^51) rounds y to an integer, ties to even, and leaves the integer in the low bits.
ROUNDER = np.float32(1.5 * 2**23)
ROUNDER_BITS = ROUNDER.view(np.int32)
WIDE_ROUNDER = np.float64(1.5 * 2**52)
WIDE_ROUNDER_BITS = WIDE_ROUNDER.view(np.int64)
EIGHT_ROUNDERS = np.int64((8 * int(WIDE_ROUNDER_BITS) + 2**63) % 2**64 - 2**63)  # modulo 2^64, like the sums
WIDE_ROUNDER_LIMIT = 2.0**50
PIECE = 1024  # values per step: the temporaries stay in the fastest cache


@inner
def _round_to_nearest(values, inverse, largest, levels):
    top = np.int32(largest)
    for i in range(values.size):
        level = np.int32(np.float32(values[i] * inverse + ROUNDER).view(np.int32) - ROUNDER_BITS)
        levels[i] = np.int8(min(max(level, np.int32(-top)), top))


@inner
def _round_stochastically(values, inverse, halves, levels):
    for i in range(values.size):
        fixed = np.int32(np.rint(np.float32(np.float32(values[i] * inverse) * FIXED_POINT)))
        levels[i] = np.int8(np.int32(fixed + np.int32(halves[i])) >> np.int32(16))


@kernel(boolean, reads(f4), i64, f4, f4, boolean, i64, u64, writes(f4), writes(i8))
def encode_uniform(values, block, largest, limit, stochastic, first_index, key, scales, levels):
    """Scales and levels -largest..largest of blocks; False for infinity or NaN. `limit`: the largest scale."""
    hashes = np.empty(PIECE // 4 + 2, np.uint64)
    halves = hashes.view(np.uint16)
    mixed_key = mix(key)
    drawn = drawn_to = np.int64(0)  # `halves` holds the halves of values drawn..drawn_to-1
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
        at = np.int64(0)
        while at < x.size:
            index = first_index + start + at
            if index >= drawn_to:  # for several blocks: a call for each block would take longer than the hashes
                drawn = index - (index & 3)
                drawn_to = drawn + PIECE
                fill_hashes(mixed_key, np.uint64(drawn >> 2), hashes[: PIECE // 4])
            stop = min(x.size, at + drawn_to - index)
            _round_stochastically(x[at:stop], inverse, halves[index - drawn : drawn_to - drawn], out[at:stop])
            at = stop
    return True


@kernel(void, reads(i8), reads(f4), i64, writes(f4))
def decode_uniform(levels, scales, block, values):
    """values = level * scale."""
    for number in range(scales.size):
        start = number * block
        part, out, scale = levels[start : start + block], values[start : start + block], scales[number]
        for i in range(part.size):
            out[i] = np.float32(part[i]) * scale


@kernel(f4, reads(i8), reads(f4), i64, i64, f4)
def check_uniform(levels, scales, block, largest, limit):
    """The largest |level * scale|; -1 if a level is not in -largest..largest, or a scale not 0 or in 2^-126..limit."""
    greatest = F32_ZERO
    for number in range(scales.size):
        start = number * block
        part, scale = levels[start : start + block], scales[number]
        # The integer bits of minus zero are not 0, so it is refused; for NaN both comparisons are false.
        if np.float32(scale).view(np.int32) != 0 and not (SMALLEST_SCALE <= scale <= limit):
            return np.float32(-1)
        low = high = np.int8(0)
        for i in range(part.size):
            low = min(low, part[i])
            high = max(high, part[i])
        most = max(-np.int64(low), np.int64(high))
        if most > largest:
            return np.float32(-1)
        # Rounding is monotonic: the largest level gives the largest product.
        greatest = max(greatest, np.float32(most) * scale)
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
    """sums += rint(level * scale * factor); each term must be within 2^53."""
    for number in range(scales.size):
        start = number * block
        part, out, scale = levels[start : start + block], sums[start : start + block], scales[number]
        if np.float64(scale) * factor * 128.0 < WIDE_ROUNDER_LIMIT:
            _add_levels(part, scale, factor, out)
        else:
            for i in range(part.size):
                out[i] += np.int64(np.rint(np.float64(np.float32(part[i]) * scale) * factor))


@inner
def _add_eight(l0, l1, l2, l3, l4, l5, l6, l7, c, f, sums):
    for i in range(sums.size):
        t0 = np.float64(np.float64(np.float32(l0[i]) * c[0]) * f[0] + WIDE_ROUNDER).view(np.int64)
        t1 = np.float64(np.float64(np.float32(l1[i]) * c[1]) * f[1] + WIDE_ROUNDER).view(np.int64)
        t2 = np.float64(np.float64(np.float32(l2[i]) * c[2]) * f[2] + WIDE_ROUNDER).view(np.int64)
        t3 = np.float64(np.float64(np.float32(l3[i]) * c[3]) * f[3] + WIDE_ROUNDER).view(np.int64)
        t4 = np.float64(np.float64(np.float32(l4[i]) * c[4]) * f[4] + WIDE_ROUNDER).view(np.int64)
        t5 = np.float64(np.float64(np.float32(l5[i]) * c[5]) * f[5] + WIDE_ROUNDER).view(np.int64)
        t6 = np.float64(np.float64(np.float32(l6[i]) * c[6]) * f[6] + WIDE_ROUNDER).view(np.int64)
        t7 = np.float64(np.float64(np.float32(l7[i]) * c[7]) * f[7] + WIDE_ROUNDER).view(np.int64)
        sums[i] += ((t0 + t1) + (t2 + t3)) + ((t4 + t5) + (t6 + t7)) - EIGHT_ROUNDERS


@kernel(void, eight(reads(i8)), eight(reads(f4)), eight(f8), i64, writes(i64))
def add_eight(levels, scales, factors, block, sums):
    """The same as eight calls of add_uniform, in one pass over the sums."""
    for number in range(scales[0].size):
        at = number * block
        out = sums[at : at + block]
        c = (
            scales[0][number],
            scales[1][number],
            scales[2][number],
            scales[3][number],
            scales[4][number],
            scales[5][number],
            scales[6][number],
            scales[7][number],
        )
        most = 0.0
        for k in range(8):
            most = max(most, np.float64(c[k]) * factors[k])
        if most * 128.0 < WIDE_ROUNDER_LIMIT:
            _add_eight(
                levels[0][at : at + block],
                levels[1][at : at + block],
                levels[2][at : at + block],
                levels[3][at : at + block],
                levels[4][at : at + block],
                levels[5][at : at + block],
                levels[6][at : at + block],
                levels[7][at : at + block],
                c,
                factors,
                out,
            )
        else:
            for k in range(8):
                part = levels[k][at : at + block]
                for i in range(part.size):
                    out[i] += np.int64(np.rint(np.float64(np.float32(part[i]) * c[k]) * factors[k]))


@kernel(void, reads(f4), f8, writes(i64))
def add_vector(values, factor, sums):
    """sums += rint(value * factor); each term must be within 2^53."""
    for start in range(0, values.size, PIECE):
        part, out = values[start : start + PIECE], sums[start : start + PIECE]
        if np.float64(np.int32(largest_bits(part)).view(np.float32)) * factor < WIDE_ROUNDER_LIMIT:
            _add_values(part, factor, out)
        else:
            for i in range(part.size):
                out[i] += np.int64(np.rint(np.float64(part[i]) * factor))


@kernel(f4, reads(f4))
def largest_magnitude(values):
    """max |value|; NaN if any value is NaN; 0 for an empty array."""
    return np.int32(largest_bits(values)).view(np.float32)
