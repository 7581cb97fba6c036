"""The loops of the codecs, compiled by numba. Knows arrays; not packets, threads or errors.

Bit for bit what uniform.py, accumulator.py, bits.py, rotation.py and lloyd.py compute with numpy. Each works on a
contiguous part of a run that starts and stops at blocks, so that threads can share a run. All in one file: numba
notices a change of the file that a cached kernel is in, but not of one that this imports from.

To keep the bits: no fastmath; float32 meets float32 only (with a Python float numba widens); uint64 meets uint64 only
(with int64 numba turns to float64). To be vectorised: arrays are sliced first and then indexed from 0, and the largest
magnitude is found among the integer bits, which order as magnitudes do and put infinity and NaN last.
"""

# The types are in the decorators, where numba reads them.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

_SETTINGS = {"nogil": True, "error_model": "numpy"}

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)
# A table in place of one of three 64-bit products a hash, which is what a vector unit is slow at.
STEPS = np.arange(1, 513, dtype=np.uint64) * GOLDEN
ONE = np.uint64(1)
BYTES = np.uint64(0x0101010101010101)
BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)
SIGN = np.uint32(0x80000000)
NO_SIGN = np.uint32(0)

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
    counter = mixed_key + first * GOLDEN
    for start in range(0, hashes.size, STEPS.size):
        part = hashes[start : start + STEPS.size]
        for i in range(part.size):
            part[i] = _mix(counter + STEPS[i])
        counter += STEPS[STEPS.size - 1]


@_inner
def _copy(source, target):
    """As target[:] = source, which takes numba seconds to compile."""
    for i in range(source.size):
        target[i] = source[i]


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


@_inner
def _gather_bits(codes, packed, bits):
    """8 codes of `bits` bits, a byte each -> one item of `packed`."""
    shift, masks = np.uint64(8 - bits), _masks(bits)
    for i in range(packed.size):
        x = codes[i] & masks[0]
        x = (x | (x >> shift)) & masks[1]
        x = (x | (x >> (shift + shift))) & masks[2]
        packed[i] = x | (x >> (shift + shift + shift + shift))


@_inner
def _spread_bits(packed, codes, bits, signed):
    """The inverse; `signed`: two's complement."""
    shift, masks = np.uint64(8 - bits), _masks(bits)
    sign = np.uint64(1 << (bits - 1)) * BYTES if signed else np.uint64(0)
    for i in range(packed.size):
        x = np.uint64(packed[i])
        x = (x | (x << (shift + shift + shift + shift))) & masks[2]
        x = (x | (x << (shift + shift))) & masks[1]
        x = (x | (x << shift)) & masks[0]
        # Each sign bit s becomes all the bits above the code: s * (2^(9 - bits) - 2), without a carry between bytes.
        s = x & sign
        codes[i] = x | ((s << (shift + ONE)) - (s << ONE))


@_inner
def _masks(bits):
    """Of 1, 2 and 4 adjacent codes, in each 1, 2 and 4 bytes."""
    one = np.uint64((1 << bits) - 1)
    two = np.uint64((1 << (2 * bits)) - 1)
    four = np.uint64((1 << (4 * bits)) - 1)
    return one * BYTES, two * np.uint64(0x0001000100010001), four * np.uint64(0x0000000100000001)


@_kernel(types.void, _in(_u8), _i64, _out(_u8))
def pack(codes, bits, packed):
    """The low 1, 2 or 4 bits of each code -> bytes, the first value in the lowest bits; bits after the last are 0."""
    groups = codes.size // 8
    eights, out = codes[: groups * 8].view(np.uint64), packed[: groups * bits]
    if bits == 1:
        _gather_bits(eights, out, bits)
    elif bits == 2:
        _gather_bits(eights, out.view(np.uint16), bits)
    else:
        _gather_bits(eights, out.view(np.uint32), bits)
    for byte in range(groups * bits, packed.size):
        packed[byte] = 0
    for i in range(groups * 8, codes.size):
        code = (np.int64(codes[i]) & ((1 << bits) - 1)) << (i * bits & 7)
        packed[i * bits >> 3] = np.uint8(np.int64(packed[i * bits >> 3]) | code)


@_kernel(types.boolean, _in(_u8), _i64, types.boolean, _out(_u8))
def unpack(packed, bits, signed, codes):
    """Codes, or with `signed` their two's complement, from bytes; False if a bit after the last code is set."""
    groups = codes.size // 8
    eights, whole = codes[: groups * 8].view(np.uint64), packed[: groups * bits]
    if bits == 1:
        _spread_bits(whole, eights, bits, signed)
    elif bits == 2:
        _spread_bits(whole.view(np.uint16), eights, bits, signed)
    else:
        _spread_bits(whole.view(np.uint32), eights, bits, signed)
    half = 1 << (bits - 1)
    for i in range(groups * 8, codes.size):
        code = (np.int64(packed[i * bits >> 3]) >> (i * bits & 7)) & ((1 << bits) - 1)
        codes[i] = np.uint8((code ^ half) - half if signed else code)
    used = codes.size * bits & 7
    return used == 0 or np.int64(packed[packed.size - 1]) >> used == 0


@_inner
def _num_blocks(num_values, block):
    return max(1, (num_values + block // 2) // block)


@_inner
def _stop(number, blocks, block, num_values):
    """Where a block stops: the last one takes in what is less than half a block."""
    return num_values if number == blocks - 1 else (number + 1) * block


@_inner
def _flip_signs(values, first_index, seed, pass_number, hashes):
    """Pass `pass_number` of the random signs. Bit i % 64 of hash i / 64 is bit i % 32 of word i / 32."""
    mixed_key = _mix(np.uint64(seed) + (np.uint64(pass_number) + ONE) * np.uint64(2**32))
    skipped = np.uint64(first_index & 63)
    used = (np.int64(skipped) + values.size + 63) >> 6
    _fill_hashes(mixed_key, np.uint64(first_index >> 6), hashes[:used])
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
    for i in range(bits.size // 32 * 32, bits.size):
        bits[i] = bits[i] ^ (SIGN if words[i >> 5] & BITS[i & 31] else NO_SIGN)


@_inner
def _radix_4(x, c, y):
    """Two steps of the transform on neighbours, which it leaves a quarter apart: so the next ones become neighbours."""
    quarter = x.size // 4
    y0, y1, y2, y3 = y[:quarter], y[quarter : 2 * quarter], y[2 * quarter : 3 * quarter], y[3 * quarter :]
    for j in range(quarter):
        a, b, d, e = x[4 * j] * c, x[4 * j + 1] * c, x[4 * j + 2] * c, x[4 * j + 3] * c
        p, q, r, s = a + b, a - b, d + e, d - e
        y0[j] = p + r
        y1[j] = q + s
        y2[j] = p - r
        y3[j] = q - s


@_inner
def _radix_2(x, c, y):
    half = x.size // 2
    y0, y1 = y[:half], y[half:]
    for j in range(half):
        a, b = x[2 * j] * c, x[2 * j + 1] * c
        y0[j] = a + b
        y1[j] = a - b


@_inner
def _radix(x, c, y, four):
    if four:
        _radix_4(x, c, y)
    else:
        _radix_2(x, c, y)


@_inner
def _hadamard(x, spare):
    """The transform of x, in place. After log2(w) steps, each a rotation of the index bits, all is where it was."""
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
        _copy(other, x)


@_inner
def _window(size):
    w = 1
    while 2 * w <= size:
        w *= 2
    return w


@_inner
def _rotate(x, first_index, seed, spare, hashes):
    w = _window(x.size)
    for pass_number in range(2):
        _flip_signs(x, first_index, seed, pass_number, hashes)
        _hadamard(x[:w], spare)
        if w < x.size:
            _hadamard(x[x.size - w :], spare)


@_inner
def _unrotate(x, first_index, seed, spare, hashes):
    w = _window(x.size)
    for pass_number in range(1, -1, -1):
        if w < x.size:
            _hadamard(x[x.size - w :], spare)
        _hadamard(x[:w], spare)
        _flip_signs(x, first_index, seed, pass_number, hashes)


@_inner
def _widest(num_values, block):
    return min(num_values, block + block // 2)


@_inner
def _spare(widest):
    """Room to rotate in: for the transform, and for the signs."""
    return np.empty(widest, np.float32), np.empty(widest // 64 + 3, np.uint64)


@_kernel(types.void, _in(_f4), _i64, _i64, _i64, _out(_f4))
def rotate_run(values, block, first_index, seed, rotated):
    """The rotated copy of blocks, the last of which is half a block to one and a half."""
    spare, hashes = _spare(_widest(values.size, block))
    blocks = _num_blocks(values.size, block)
    for number in range(blocks):
        start, stop = number * block, _stop(number, blocks, block, values.size)
        z = rotated[start:stop]
        _copy(values[start:stop], z)
        _rotate(z, first_index + start, seed, spare, hashes)


@_kernel(types.void, _out(_f4), _i64, _i64, _i64)
def unrotate_run(values, block, first_index, seed):
    """The inverse, in place."""
    spare, hashes = _spare(_widest(values.size, block))
    blocks = _num_blocks(values.size, block)
    for number in range(blocks):
        start, stop = number * block, _stop(number, blocks, block, values.size)
        _unrotate(values[start:stop], first_index + start, seed, spare, hashes)


@_inner
def _tree_dot(a, b, terms):
    """Sum of a * b in float64, in the order of lloyd.tree_sum."""
    if a.size == 1:
        return np.float64(a[0]) * np.float64(b[0])
    half = _window(a.size - 1)  # half the next power of two
    low_a, low_b, high_a, high_b, out = a[:half], b[:half], a[half:], b[half:], terms[:half]
    for i in range(high_a.size):
        out[i] = np.float64(low_a[i]) * np.float64(low_b[i]) + np.float64(high_a[i]) * np.float64(high_b[i])
    for i in range(high_a.size, half):
        out[i] = np.float64(low_a[i]) * np.float64(low_b[i]) + 0.0
    while half > 1:
        half //= 2
        low, high = terms[:half], terms[half : 2 * half]
        for i in range(half):
            low[i] = low[i] + high[i]
    return terms[0]


@_inner
def _to_codes(z, r, thresholds, codes):
    for i in range(z.size):
        codes[i] = np.uint8(z[i] * r > thresholds[0])
    for k in range(1, thresholds.size):
        threshold = thresholds[k]
        for i in range(z.size):
            codes[i] = np.uint8(codes[i] + np.uint8(z[i] * r > threshold))


@_inner
def _look_up(codes, table, values):
    last = np.uint8(table.size - 1)  # a power of two less one: no code reads beyond
    for i in range(codes.size):
        values[i] = table[codes[i] & last]


@_kernel(
    _i64,
    *(_in(_f4), _i64, _i64, _i64, _in(_f4), _in(_f4), types.boolean),
    *(_f4, _f8, _out(_f4), _out(_u8)),
)
def encode_lloyd(
    values, block, first_index, seed, thresholds, points, feedback, largest_value, largest_scale, scales, codes
):
    """Rotated blocks -> scales and Lloyd-Max codes. 0; or 1 for infinity or NaN, 2 for |value| > largest_value."""
    widest = _widest(values.size, block)
    spare, hashes = _spare(widest)
    rotated, decoded = np.empty(widest, np.float32), np.empty(widest, np.float32)
    terms = np.empty(_window(widest), np.float64)
    blocks = _num_blocks(values.size, block)
    for number in range(blocks):
        start, stop = number * block, _stop(number, blocks, block, values.size)
        magnitude = _largest_bits(values[start:stop])
        if magnitude >= INFINITE:
            return 1
        if np.int32(magnitude).view(np.float32) > largest_value:
            return 2
        size = stop - start
        z, q, code = rotated[:size], decoded[:size], codes[start:stop]
        _copy(values[start:stop], z)
        _rotate(z, first_index + start, seed, spare, hashes)
        energy = _tree_dot(z, z, terms)
        if energy < size * 2.0**-200:
            scales[number] = F32_ZERO
            _to_codes(z, F32_ZERO, thresholds, code)
            continue
        _to_codes(z, np.float32(1.0 / np.sqrt(energy / size)), thresholds, code)
        _look_up(code, points, q)
        along = _tree_dot(z, q, terms)
        scale = along / _tree_dot(q, q, terms) if feedback else energy / along
        scales[number] = np.float32(min(max(scale, np.float64(SMALLEST_SCALE)), largest_scale))
    return 0


@_kernel(types.void, _in(_u8), _in(_f4), _in(_f4), _i64, _i64, _i64, _out(_f4))
def decode_lloyd(codes, scales, points, block, first_index, seed, values):
    """values = the inverse rotation of points[code] * scale."""
    spare, hashes = _spare(_widest(values.size, block))
    table = np.empty_like(points)
    blocks = _num_blocks(values.size, block)
    for number in range(blocks):
        start, stop = number * block, _stop(number, blocks, block, values.size)
        for k in range(points.size):
            table[k] = points[k] * scales[number]
        _look_up(codes[start:stop], table, values[start:stop])
        _unrotate(values[start:stop], first_index + start, seed, spare, hashes)
