"""The compiled rotation.py and lloyd.py. Depends on blocks of one power-of-two length; not on runs, bits or packets."""

# The types are in the decorators, where numba reads them.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from fedq.codec.kernel_parts import (
    F32_ONE,
    F32_ZERO,
    INFINITE,
    ONE,
    SMALLEST_SCALE,
    copy,
    fill_hashes,
    largest_bits,
    mix,
)
from fedq.core.compiled import boolean, f4, f8, i64, inner, kernel, reads, u8, void, writes

BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)
SIGN = np.uint32(0x80000000)
NO_SIGN = np.uint32(0)


@inner
def _flip_signs(values, first_index, seed, step, hashes):
    """Apply the random signs of step `step`. Bit i % 64 of hash i / 64 is bit i % 32 of word i / 32."""
    mixed_key = mix(np.uint64(seed) + (np.uint64(step) + ONE) * np.uint64(2**32))
    skipped = np.uint64(first_index & 63)
    used = (np.int64(skipped) + values.size + 63) >> 6
    fill_hashes(mixed_key, np.uint64(first_index >> 6), hashes[:used])
    hashes[used] = np.uint64(0)
    if skipped:
        for j in range(used):
            hashes[j] = (hashes[j] >> skipped) | (hashes[j + 1] << (np.uint64(64) - skipped))
    words = hashes.view(np.uint32)
    bits = values.view(np.uint32)
    for word in range(bits.size // 32):
        part, flips = bits[word * 32 : word * 32 + 32], words[word]
        for i in range(32):
            part[i] = part[i] ^ (SIGN if flips & BITS[i] else NO_SIGN)


@inner
def _radix_4(x, c, y):
    """Two steps of the transform on neighbours. The results lie a quarter apart, so the next pairs are neighbours."""
    quarter = x.size // 4
    y0, y1, y2, y3 = y[:quarter], y[quarter : 2 * quarter], y[2 * quarter : 3 * quarter], y[3 * quarter :]
    for j in range(quarter):
        a, b, d, e = x[4 * j] * c, x[4 * j + 1] * c, x[4 * j + 2] * c, x[4 * j + 3] * c
        p, q, r, s = a + b, a - b, d + e, d - e
        y0[j] = p + r
        y1[j] = q + s
        y2[j] = p - r
        y3[j] = q - s


@inner
def _radix_2(x, c, y):
    half = x.size // 2
    y0, y1 = y[:half], y[half:]
    for j in range(half):
        a, b = x[2 * j] * c, x[2 * j + 1] * c
        y0[j] = a + b
        y1[j] = a - b


@inner
def _radix(x, c, y, four):
    if four:
        _radix_4(x, c, y)
    else:
        _radix_2(x, c, y)


@inner
def _hadamard(x, spare):
    """The transform of x, in place. Each of the log2(w) steps rotates the index bits; the last restores the order."""
    log = 0
    while 1 << log < x.size:
        log += 1
    c, other = np.float32(2.0 ** (-log / 2)), spare[: x.size]
    steps = (log + 1) // 2
    for step in range(steps):
        if step % 2 == 0:
            _radix(x, c, other, step < log // 2)
        else:
            _radix(other, c, x, step < log // 2)
        c = F32_ONE
    if steps % 2:
        copy(other, x)


@inner
def _rotate(x, first_index, seed, spare, hashes):
    for step in range(2):
        _flip_signs(x, first_index, seed, step, hashes)
        _hadamard(x, spare)


@inner
def _unrotate(x, first_index, seed, spare, hashes):
    for step in range(1, -1, -1):
        _hadamard(x, spare)
        _flip_signs(x, first_index, seed, step, hashes)


@inner
def _spare(block):
    """Work space to rotate a block: one array for the transform, one for the signs."""
    return np.empty(block, np.float32), np.empty(block // 64 + 3, np.uint64)


@kernel(void, reads(f4), i64, i64, i64, writes(f4))
def rotate_run(values, block, first_index, seed, rotated):
    """Write the rotated blocks into `rotated`."""
    spare, hashes = _spare(block)
    for number in range(values.size // block):
        start, stop = number * block, (number + 1) * block
        z = rotated[start:stop]
        copy(values[start:stop], z)
        _rotate(z, first_index + start, seed, spare, hashes)


@kernel(void, writes(f4), i64, i64, i64)
def unrotate_run(values, block, first_index, seed):
    """The inverse of `rotate_run`, in place."""
    spare, hashes = _spare(block)
    for number in range(values.size // block):
        start, stop = number * block, (number + 1) * block
        _unrotate(values[start:stop], first_index + start, seed, spare, hashes)


@inner
def _tree_dot(a, b, terms):
    """Sum of a * b in float64, in the order of lloyd.tree_sum."""
    half = a.size // 2
    low_a, low_b, high_a, high_b, out = a[:half], b[:half], a[half:], b[half:], terms[:half]
    for i in range(half):
        out[i] = np.float64(low_a[i]) * np.float64(low_b[i]) + np.float64(high_a[i]) * np.float64(high_b[i])
    while half > 1:
        half //= 2
        low, high = terms[:half], terms[half : 2 * half]
        for i in range(half):
            low[i] = low[i] + high[i]
    return terms[0]


@inner
def _to_codes(z, r, thresholds, codes):
    for i in range(z.size):
        codes[i] = np.uint8(z[i] * r > thresholds[0])
    for k in range(1, thresholds.size):
        threshold = thresholds[k]
        for i in range(z.size):
            codes[i] = np.uint8(codes[i] + np.uint8(z[i] * r > threshold))


@inner
def _look_up(codes, table, values):
    last = np.uint8(table.size - 1)  # 2^bits - 1: the mask keeps every index inside the table
    for i in range(codes.size):
        values[i] = table[codes[i] & last]


@kernel(
    i64,
    *(reads(f4), i64, i64, i64, reads(f4), reads(f4), boolean),
    *(f4, f8, writes(f4), writes(u8)),
)
def encode_lloyd(
    values, block, first_index, seed, thresholds, points, error_feedback, largest_value, largest_scale, scales, codes
):
    """Rotated blocks -> scales and Lloyd-Max codes. Returns 0; 1 for infinity or NaN; 2 for |value| > largest_value."""
    spare, hashes = _spare(block)
    rotated, decoded = np.empty(block, np.float32), np.empty(block, np.float32)
    terms = np.empty(block, np.float64)
    for number in range(values.size // block):
        start, stop = number * block, (number + 1) * block
        magnitude = largest_bits(values[start:stop])
        if magnitude >= INFINITE:
            return 1
        if np.int32(magnitude).view(np.float32) > largest_value:
            return 2
        size = stop - start
        z, q, code = rotated[:size], decoded[:size], codes[start:stop]
        copy(values[start:stop], z)
        _rotate(z, first_index + start, seed, spare, hashes)
        energy = _tree_dot(z, z, terms)
        if energy < size * 2.0**-200:
            scales[number] = F32_ZERO
            _to_codes(z, F32_ZERO, thresholds, code)
            continue
        _to_codes(z, np.float32(1.0 / np.sqrt(energy / size)), thresholds, code)
        _look_up(code, points, q)
        along = _tree_dot(z, q, terms)
        scale = along / _tree_dot(q, q, terms) if error_feedback else energy / along
        scales[number] = np.float32(min(max(scale, np.float64(SMALLEST_SCALE)), largest_scale))
    return 0


@kernel(void, reads(u8), reads(f4), reads(f4), i64, i64, i64, writes(f4))
def decode_lloyd(codes, scales, points, block, first_index, seed, values):
    """values = the inverse rotation of points[code] * scale."""
    spare, hashes = _spare(block)
    table = np.empty_like(points)
    for number in range(values.size // block):
        start, stop = number * block, (number + 1) * block
        for k in range(points.size):
            table[k] = points[k] * scales[number]
        _look_up(codes[start:stop], table, values[start:stop])
        _unrotate(values[start:stop], first_index + start, seed, spare, hashes)
