"""The compiled kernels give the bits of numpy: of the codecs' own code, or of a slow reference written out here."""

import numpy as np
import pytest

from fedq.codec import Int8, Layout
from fedq.codec.accumulator import Accumulator
from fedq.codec.codec import Stream
from fedq.codec.finite import largest_magnitude
from fedq.codec.rounding import random_halves, random_words
from fedq.codec.uniform import largest_scale

kernels = pytest.importorskip("fedq.codec.kernels", reason="numba is optional")

FLT_MAX = np.finfo(np.float32).max
SIZES = [1, 2, 15, 16, 17, 255, 256, 257, 1023, 4096, 4097, 100_003]
# (size, block): one value, fewer than half a block, up to one and a half, several, and every kind of last block.
CUTS = [(128, 128), (256, 128), (1024, 256), (4096, 4096), (3 * 4096, 4096), (65536, 65536)]
POINTS = {
    1: ([0.0], [-1.0, 1.0]),
    2: ([-0.98, 0.0, 0.98], [-1.51, -0.4528, 0.4528, 1.51]),
    4: (np.linspace(-2.4, 2.4, 15), np.linspace(-2.73, 2.73, 16)),
}


def same_bits(left, right):
    return left.dtype == right.dtype and left.tobytes() == right.tobytes()


def gaussian(rng, size):
    return rng.normal(size=size).astype(np.float32)


def of_all_magnitudes(rng, size):
    """From denormal to the largest float32, zeros of both signs, and whole blocks of zeros."""
    bits = rng.integers(0, 2**32, size, dtype=np.uint32)
    values = bits.view(np.float32).copy()
    values[~np.isfinite(values)] = FLT_MAX
    values[rng.random(size) < 0.1] = -0.0
    values[size // 2 :][:300] = 0
    return values


def denormal(rng, size):
    return (rng.normal(size=size) * 1e-42).astype(np.float32)


def of_ties(rng, size):
    """Scale 1 or 2: half of the values lie midway between two levels."""
    values = rng.integers(-254, 255, size).astype(np.float32) / 2
    values[::16] = 127
    return values


KINDS = [gaussian, of_all_magnitudes, denormal, of_ties]


# ---- evenly spaced levels


def encode_uniform(values, block, largest, *, key, first_index=0):
    scales = np.empty(-(-values.size // block), np.float32)
    levels = np.empty(values.size, np.int8)
    good = kernels.encode_uniform(
        *(values, block, np.float32(largest), largest_scale(largest), key is not None),
        *(first_index, np.uint64(key or 0), scales, levels),
    )
    return good, scales, levels


def uniform_reference(values, block, largest, *, key, first_index=0):
    """int8.py's formulas, block by block, for any largest level."""
    top, scales, levels = np.float32(largest), [], []
    for start in range(0, values.size, block):
        x = values[start : start + block]
        magnitude = np.abs(x).max()
        scale = np.float32(0)
        if magnitude:
            scale = np.clip(magnitude / top, np.float32(2.0**-126), largest_scale(largest))
        y = x * (np.float32(1) / scale if scale else np.float32(0))
        if key is None:
            level = np.rint(y)
        else:
            halves = random_halves(key=key, first_index=first_index + start, count=x.size)
            level = np.floor((np.rint(y * np.float32(65536)).astype(np.int64) + halves) / 65536)
        scales.append(scale)
        levels.append(level)
    return np.array(scales, np.float32), np.concatenate(levels).astype(np.int8)


@pytest.mark.filterwarnings("ignore:underflow")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("block", "first_index", "key"), [(256, 0, None), (16, 7, 3), (1000, 10**12 + 1, 2**64 - 1)])
def test_int8_levels_are_those_of_the_codec(kind, size, block, first_index, key, rng):
    values = kind(rng, size)
    codec = Int8(block=block, rounding="nearest" if key is None else "stochastic")
    stream = Stream(first_index, seed=0, key=key or 0)
    scales, levels = np.empty(codec.num_scales(size), np.float32), np.empty(size, np.uint8)
    codec.encode_run(values, scales, levels, stream)
    good, found_scales, found_levels = encode_uniform(values, block, 127, key=key, first_index=first_index)
    assert good
    assert same_bits(found_scales, scales)
    assert same_bits(found_levels, levels.view(np.int8))
    decoded, found = np.empty(size, np.float32), np.empty(size, np.float32)
    codec.decode_run(scales, levels, decoded, stream)
    kernels.decode_uniform(levels.view(np.int8), scales, block, found)
    assert same_bits(found, decoded)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", [None, 12345])
@pytest.mark.parametrize("largest", [127, 7, 1])
@np.errstate(under="ignore")
def test_levels_of_fewer_bits_are_those_of_the_formula(kind, largest, key, rng):
    values = kind(rng, 5003)
    scales, levels = uniform_reference(values, 256, largest, key=key, first_index=3)
    good, found_scales, found_levels = encode_uniform(values, 256, largest, key=key, first_index=3)
    assert good
    assert same_bits(found_scales, scales)
    assert same_bits(found_levels, levels)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.nan])
@pytest.mark.parametrize("at", [0, 255, 256, 1002])
def test_nonfinite_values_are_refused(bad, at, rng):
    values = gaussian(rng, 1024)
    values[at] = bad
    assert not encode_uniform(values, 256, 127, key=None)[0]
    scales, codes = np.empty(4, np.float32), np.empty(1024, np.uint8)
    assert encode_lloyd(values, 256, 0, 0, 1, False, scales, codes) == 1


# ---- checking and adding


@pytest.mark.parametrize("largest", [127, 7, 1])
def test_levels_beyond_the_largest_are_found_wherever_they_are(largest, rng):
    scales = np.ones(5, np.float32)
    levels = rng.integers(-largest, largest + 1, 1100).astype(np.int8)
    assert kernels.check_uniform(levels, scales, 256, largest, np.float32(1e30)) == largest
    for at in (0, 255, 256, 1023, 1099):
        for bad in {-largest - 1, min(largest + 1, 127), -128} - {127 if largest == 127 else 0}:
            worse = levels.copy()
            worse[at] = bad
            assert kernels.check_uniform(worse, scales, 256, largest, np.float32(1e30)) == -1


@pytest.mark.parametrize("size", SIZES)
def test_check_finds_the_largest_decoded_magnitude(size, rng):
    levels = rng.integers(-127, 128, size).astype(np.int8)
    scales = (rng.random(-(-size // 256)) * 1e3).astype(np.float32)
    decoded = np.empty(size, np.float32)
    kernels.decode_uniform(levels, scales, 256, decoded)
    assert kernels.check_uniform(levels, scales, 256, 127, np.float32(1e30)) == np.abs(decoded).max()


@pytest.mark.parametrize("weight", [1.0, 2.0**-20, 1 / 3, 1234.5678])
@pytest.mark.parametrize("scale", [2.0**-126, 1e-9, 0.01, 3.0, 10.0])
@pytest.mark.parametrize("size", [1, 257, 5003])
def test_sums_are_those_of_the_accumulator(size, scale, weight, rng):
    levels = rng.integers(-127, 128, size).astype(np.int8)
    scales = (rng.random(-(-size // 256)) * scale).astype(np.float32)
    vector = np.empty(size, np.float32)
    kernels.decode_uniform(levels, scales, 256, vector)
    total = Accumulator(Layout.flat(size))
    sums, sums_of_vector = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for _ in range(2):
        total.add_vector(vector, weight)
        kernels.add_uniform(levels, scales, 256, weight * 2.0**32, sums)
        kernels.add_vector(vector, weight * 2.0**32, sums_of_vector)
    assert same_bits(sums, total._sums)
    assert same_bits(sums_of_vector, total._sums)


def test_steps_up_to_2_to_the_53_and_ties_are_summed_as_the_accumulator_does():
    vector = np.array([2**21 - 0.125, 1 - 2**21, 2**18 - 1, 2.5 * 2.0**-32, -(2.0**-33), 1.5 * 2.0**-32], np.float32)
    vector = np.concatenate([vector, np.zeros(1024, np.float32), vector[3:]])
    total, sums = Accumulator(Layout.flat(vector.size)), np.zeros(vector.size, np.int64)
    total.add_vector(vector)
    kernels.add_vector(vector, 2.0**32, sums)
    assert same_bits(sums, total._sums)
    assert sums[-3:].tolist() == [2, 0, 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_largest_magnitude_is_that_of_the_accumulator(kind, bad, rng):
    values = kind(rng, 1001)
    if bad is not None:
        values[500] = bad
    assert np.array_equal(kernels.largest_magnitude(values), largest_magnitude(values), equal_nan=True)
    assert kernels.largest_magnitude(values[:0]) == 0


# ---- packing


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("size", [*range(1, 20), 255, 256, 257, 100_003])
def test_packed_codes_lie_where_the_format_says_and_come_back(size, bits, rng):
    codes = rng.integers(0, 256, size, dtype=np.uint8)
    expected = np.zeros(-(-size * bits // 8), np.uint8)
    for place in range(8 // bits):
        part = codes[place :: 8 // bits] & (2**bits - 1)
        expected[: part.size] |= part << (place * bits)
    packed = np.full(expected.size, 255, np.uint8)
    kernels.pack(codes, bits, packed)
    assert same_bits(packed, expected)
    unsigned, signed = np.empty(size, np.uint8), np.empty(size, np.int8)
    assert kernels.unpack(packed, bits, False, unsigned)
    assert same_bits(unsigned, codes & np.uint8(2**bits - 1))
    assert kernels.unpack(packed, bits, True, signed.view(np.uint8))
    assert (signed == np.where(unsigned >= 2 ** (bits - 1), unsigned.astype(int) - 2**bits, unsigned)).all()


@pytest.mark.parametrize(("size", "bits"), [(1, 1), (7, 1), (9, 1), (1, 2), (11, 2), (1, 4), (9, 4)])
def test_a_bit_after_the_last_code_is_found(size, bits):
    packed, codes = np.zeros(-(-size * bits // 8), np.uint8), np.empty(size, np.uint8)
    packed[-1] = 128
    assert not kernels.unpack(packed, bits, False, codes)
    assert codes.tolist() == [0] * size


# ---- rotation


def blocks_of(size, block):
    return [(start, start + block) for start in range(0, size, block)]


def hadamard(x):
    v = x * np.float32(2.0 ** (-(len(x).bit_length() - 1) / 2))
    h = 1
    while h < len(v):
        index = np.arange(len(v))
        low = index[index & h == 0]
        v[low], v[low + h] = v[low] + v[low + h], v[low] - v[low + h]
        h *= 2
    return v


def signs(size, first_index, seed, step):
    index = np.arange(first_index, first_index + size)
    first_word = int(index[0]) // 32
    words = random_words(key=seed + (step + 1) * 2**32, first_index=first_word, count=size // 32 + 2)
    bit = (words[index // 32 - first_word] >> (index % 32).astype(np.uint32)) & np.uint32(1)
    return np.where(bit == 1, np.float32(-1), np.float32(1))


def rotate(x, first_index, seed):
    for step in (0, 1):
        x = hadamard(x * signs(x.size, first_index, seed, step))
    return x


def unrotate(z, first_index, seed):
    for step in (1, 0):
        z = hadamard(z) * signs(z.size, first_index, seed, step)
    return z


def tree_sum(terms):
    total = np.zeros(1 << (len(terms) - 1).bit_length())
    total[: len(terms)] = terms
    while len(total) > 1:
        total = total[: len(total) // 2] + total[len(total) // 2 :]
    return total[0]


def lloyd_reference(z, bits, error_feedback):
    thresholds, points = (np.array(part, np.float32) for part in POINTS[bits])
    wide = z.astype(np.float64)
    energy = tree_sum(wide * wide)
    if energy < z.size * 2.0**-200:
        return np.float32(0), np.full(z.size, (thresholds < 0).sum(), np.uint8)
    y = z * np.float32(1 / np.sqrt(energy / z.size))
    codes = (y[:, None] > thresholds).sum(axis=1).astype(np.uint8)
    q = points[codes].astype(np.float64)
    along = tree_sum(wide * q)
    scale = along / tree_sum(q * q) if error_feedback else energy / along
    return np.float32(np.clip(scale, 2.0**-126, 2.0**112)), codes


def encode_lloyd(values, block, first_index, seed, bits, error_feedback, scales, codes, largest_value=2.0**100):
    thresholds, points = (np.array(part, np.float32) for part in POINTS[bits])
    return kernels.encode_lloyd(
        *(values, block, first_index, seed, thresholds, points, error_feedback),
        *(np.float32(largest_value), 2.0**112, scales, codes),
    )


def bounded(values):
    return np.clip(values, np.float32(-(2.0**100)), np.float32(2.0**100))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "block"), CUTS)
@pytest.mark.parametrize(("first_index", "seed"), [(0, 0), (10**10 + 33, 2**32 - 1)])
@np.errstate(under="ignore")
def test_rotation_and_its_inverse_are_those_of_the_reference(kind, size, block, first_index, seed, rng):
    values = bounded(kind(rng, size))
    kept, rotated = values.copy(), np.empty(size, np.float32)
    kernels.rotate_run(values, block, first_index, seed, rotated)
    assert same_bits(values, kept)
    back = rotated.copy()
    kernels.unrotate_run(back, block, first_index, seed)
    for start, stop in blocks_of(size, block):
        assert same_bits(rotated[start:stop], rotate(values[start:stop], first_index + start, seed))
        assert same_bits(back[start:stop], unrotate(rotated[start:stop], first_index + start, seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "block"), CUTS)
@pytest.mark.parametrize(
    ("bits", "error_feedback", "first_index", "seed"), [(1, False, 0, 1), (2, True, 5, 9), (4, False, 64, 7)]
)
@np.errstate(under="ignore")
def test_lloyd_max_codes_are_those_of_the_reference(kind, size, block, bits, error_feedback, first_index, seed, rng):
    values = bounded(kind(rng, size))
    cut, points = blocks_of(size, block), np.array(POINTS[bits][1], np.float32)
    scales, codes, decoded = np.empty(len(cut), np.float32), np.empty(size, np.uint8), np.empty(size, np.float32)
    assert encode_lloyd(values, block, first_index, seed, bits, error_feedback, scales, codes) == 0
    kernels.decode_lloyd(codes, scales, points, block, first_index, seed, decoded)
    for (start, stop), scale in zip(cut, scales, strict=True):
        z = rotate(values[start:stop], first_index + start, seed)
        expected_scale, expected_codes = lloyd_reference(z, bits, error_feedback)
        assert scale == expected_scale
        assert same_bits(codes[start:stop], expected_codes)
        z = points[expected_codes] * expected_scale
        assert same_bits(decoded[start:stop], unrotate(z, first_index + start, seed))


def test_values_beyond_what_a_rotation_carries_are_refused(rng):
    values = gaussian(rng, 1024)
    scales, codes = np.empty(4, np.float32), np.empty(1024, np.uint8)
    values[700] = -(2.0**80)
    assert encode_lloyd(values, 256, 0, 0, 1, False, scales, codes, largest_value=2.0**80) == 0
    values[700] = np.nextafter(np.float32(-(2.0**80)), np.float32(-np.inf))
    assert encode_lloyd(values, 256, 0, 0, 1, False, scales, codes, largest_value=2.0**80) == 2


# ---- what they are called with


def test_parts_of_a_run_give_the_bits_of_the_whole(rng):
    values, block = gaussian(rng, 10_240), 256
    count = len(blocks_of(values.size, block))
    whole, parts = (np.empty(values.size, np.float32) for _ in range(2))
    kernels.rotate_run(values, block, 17, 3, whole)
    for first, last in [(0, 1), (1, 20), (20, count)]:
        part = slice(first * block, None if last == count else last * block)
        kernels.rotate_run(values[part], block, 17 + first * block, 3, parts[part])
    assert same_bits(parts, whole)
    _, scales, levels = encode_uniform(values, block, 127, key=5, first_index=17)
    _, part_scales, part_levels = encode_uniform(values[3 * block :], block, 127, key=5, first_index=17 + 3 * block)
    assert same_bits(part_scales, scales[3:])
    assert same_bits(part_levels, levels[3 * block :])


def test_read_only_and_unaligned_arrays_are_taken_without_another_compilation(rng):
    levels, scales = rng.integers(-127, 128, 300).astype(np.int8), np.ones(2, np.float32)
    packet = b"x" + scales.tobytes() + levels.tobytes()
    out = np.empty(300, np.float32)
    kernels.decode_uniform(np.frombuffer(packet, np.int8, 300, 9), np.frombuffer(packet, "<f4", 2, 1), 256, out)
    assert out.tolist() == levels.tolist()
    assert len(kernels.decode_uniform.compile().signatures) == 1
