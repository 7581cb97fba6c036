"""int8: hand-computed blocks, the documented bound on any finite input, and unbiased rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedq.codec import Int8, Layout, Segment, decode, encode
from fedq.codec.header import HEADER_BYTES
from fedq.codec.rounding import random_halves
from fedq.codec.uniform import SMALLEST_SCALE, largest_scale

LARGEST_SCALE = largest_scale(127)
FLT_MAX = float(np.finfo(np.float32).max)
ARITHMETIC = 2.0**-15  # of a scale: the part of the bound that is float32 rounding


def round_trip(values, codec=None, key=0):
    """(decoded, scales, levels) of values padded to one segment of 256 or more."""
    vector = np.zeros(max(256, len(values)), np.float32)
    vector[: len(values)] = values
    layout, codec = Layout.flat(vector.size), codec or Int8()
    packet = encode(vector, codec, layout=layout, key=key)
    num_scales = codec.num_scales(vector.size)
    scales = np.frombuffer(packet, "<f4", num_scales, HEADER_BYTES)
    levels = np.frombuffer(packet, np.int8, offset=HEADER_BYTES + 4 * num_scales)
    return decode(packet, layout)[: len(values)], scales, levels[: len(values)]


def test_levels_of_a_block_worked_by_hand():
    # Largest magnitude 254: scale 2, so value / 2 rounded with ties to even.
    decoded, scales, levels = round_trip([254, -254, 1, 3, -5, 0, -0.0, 100.9])
    assert scales.tolist() == [2.0]
    assert levels.tolist() == [127, -127, 0, 2, -2, 0, 0, 50]
    assert decoded.tolist() == [254, -254, 0, 4, -4, 0, 0, 100]


def test_each_block_has_its_own_scale_and_the_last_may_be_short():
    values = np.zeros(256 + 16 + 3, np.float32)
    values[0], values[256], values[272] = 127, 1270, 12.7
    decoded, scales, _ = round_trip(values, Int8(block=16))
    assert scales.size == 18  # 17 whole blocks of 16 and one of 3
    assert scales[[0, 16, 17]].tolist() == [1.0, 10.0, np.float32(12.7) / np.float32(127)]
    assert not scales[1:16].any()
    assert decoded[256] == 1270


def test_blocks_never_cross_a_segment():
    layout = Layout([Segment("large", (300,)), Segment("tiny_values", (300,))])
    vector = np.concatenate([np.full(300, 1000), np.full(300, 1e-6)]).astype(np.float32)
    decoded = decode(encode(vector, Int8(block=65536), layout=layout), layout)
    # In a shared block, of scale 1000 / 127, the second segment would be all zeros.
    assert np.abs(decoded[300:] - np.float32(1e-6)).max() <= 1e-6 / 127


def test_small_and_hinted_segments_are_exact(rng):
    layout = Layout([Segment("norm", (255,)), Segment("conv", (1000,)), Segment("head", (999,), hint="float32")])
    vector = rng.normal(size=layout.size).astype(np.float32)
    decoded = decode(encode(vector, "int8", layout=layout), layout)
    assert np.array_equal(decoded[:255], vector[:255])
    assert np.array_equal(decoded[1255:], vector[1255:])
    assert not np.array_equal(decoded[255:1255], vector[255:1255])


def test_a_segment_of_256_values_is_compressed_and_one_of_255_is_not():
    assert len(encode(np.zeros(256, np.float32), "int8", layout=Layout.flat(256))) == HEADER_BYTES + 4 + 256
    assert len(encode(np.zeros(255, np.float32), "int8", layout=Layout.flat(255))) == HEADER_BYTES + 4 * 255


def test_an_all_zero_block_has_scale_zero():
    decoded, scales, levels = round_trip(np.zeros(300, np.float32))
    assert not decoded.any()
    assert not scales.any()
    assert not levels.any()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_largest_float32_stays_finite(rounding):
    decoded, scales, levels = round_trip([FLT_MAX, -FLT_MAX, FLT_MAX / 2], Int8(rounding=rounding))
    assert scales[0] == LARGEST_SCALE
    assert levels[:2].tolist() == [127, -127]
    assert np.isfinite(decoded).all()
    assert abs(float(decoded[0]) - FLT_MAX) <= ARITHMETIC * float(LARGEST_SCALE)


def test_the_largest_scale_is_the_largest_that_decodes_to_finite_values():
    with np.errstate(over="ignore"):
        assert np.isfinite(np.float32(127) * LARGEST_SCALE)
        assert np.isinf(np.float32(127) * np.nextafter(LARGEST_SCALE, np.float32(np.inf)))


def test_subnormal_blocks_use_the_smallest_normal_scale():
    step = 2.0**-126
    decoded, scales, levels = round_trip([step, -3 * step, 2.0**-149, 0.75 * step])
    assert scales.tolist() == [step] == [float(SMALLEST_SCALE)]
    assert levels.tolist() == [1, -3, 0, 1]
    assert decoded.tolist() == [step, -3 * step, 0, step]


def test_no_value_is_rounded_up_to_128():
    # In float32 this value times 1 / (itself / 127) is 127 + 2^-17: half a step of the grid that halves are added to.
    largest = np.float32(1.000274658203125)
    assert largest * (np.float32(1) / (largest / np.float32(127))) == np.float32(127 + 2.0**-17)
    assert random_halves(key=6, first_index=0, count=2**19).max() == 2**16 - 1
    for value in (largest, FLT_MAX, -largest):
        _, _, levels = round_trip(np.full(2**19, value, np.float32), Int8(rounding="stochastic"), key=6)
        assert set(levels.tolist()) == {127 if value > 0 else -127}


finite = st.floats(-FLT_MAX, FLT_MAX, width=32, allow_subnormal=True)
vectors = npst.arrays(np.float32, st.integers(256, 400), elements=finite, fill=finite)


@settings(max_examples=60, deadline=None)
@given(vectors, st.sampled_from(["nearest", "stochastic"]), st.integers(16, 300), st.integers(0, 2**64 - 1))
def test_any_finite_vector_comes_back_within_the_documented_bound(vector, rounding, block, key):
    decoded, scales, _ = round_trip(vector, Int8(block=block, rounding=rounding), key=key)
    steps = (0.5 if rounding == "nearest" else 1.0) + ARITHMETIC
    allowed = steps * scales.astype(np.float64).repeat(block)[: vector.size]
    assert np.isfinite(decoded).all()
    assert (np.abs(decoded.astype(np.float64) - vector) <= allowed).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(-148, 127), st.integers(0, 2**32 - 1))
def test_the_bound_holds_at_every_magnitude(exponent, seed):
    vector = np.random.default_rng(seed).uniform(-1, 1, 1000) * 2.0**exponent
    decoded, scales, _ = round_trip(vector.astype(np.float32), Int8())
    allowed = (0.5 + ARITHMETIC) * scales.astype(np.float64).repeat(256)[:1000]
    assert (np.abs(decoded.astype(np.float64) - vector.astype(np.float32)) <= allowed).all()


def test_stochastic_rounding_goes_up_exactly_where_the_half_carries():
    # Scale 1, so y = value. rint(2.3 * 2^16) = 150733 = 2 * 2^16 + 19661: up where the half is 2^16 - 19661 or more.
    vector = np.full(512, 2.3, np.float32)
    vector[1::2] *= -1
    vector[0] = 127
    _, _, levels = round_trip(vector, Int8(block=512, rounding="stochastic"), key=11)
    halves = random_halves(key=11, first_index=0, count=512).astype(int)
    expected = np.where(halves >= 2**16 - 19661, 3, 2)
    expected[1::2] = np.where(halves >= 19661, -2, -3)[1::2]  # -150733 = -3 * 2^16 + 45875
    expected[0] = 127
    assert levels.tolist() == expected.tolist()


def test_a_value_on_the_grid_stays_there():
    vector = np.tile(np.arange(-127, 128, dtype=np.float32), 100)
    _, scales, levels = round_trip(vector, Int8(block=255, rounding="stochastic"), key=4)
    assert set(scales.tolist()) == {1.0}
    assert levels.tolist() == vector.tolist()


@pytest.mark.parametrize("parts", [0, 1, 2, 32768, 65535])
def test_the_mean_of_a_level_over_all_halves_is_the_value(parts):
    fixed = parts + 65536 * np.arange(-3, 3)[:, None]
    assert ((fixed + np.arange(65536)) >> 16).mean(axis=1).tolist() == (fixed[:, 0] / 65536).tolist()


def test_stochastic_rounding_is_unbiased(rng):
    n = 400_000
    vector = rng.uniform(-127, 127, n).astype(np.float32)
    vector[::65536] = 127  # scale 1 in every block
    decoded, scales, _ = round_trip(vector, Int8(block=65536, rounding="stochastic"), key=5)
    assert set(scales.tolist()) == {1.0}
    error = decoded.astype(np.float64) - vector
    # Variance f(1-f) of a fraction f, 1/6 on average over uniform fractions.
    bound = 5 * np.sqrt(1 / 6 / n) + ARITHMETIC
    assert abs(error.mean()) < bound
    # An error that leans away from zero would cancel between the signs above.
    assert abs((error * np.sign(vector)).mean()) < bound
    assert abs((error**2).mean() - 1 / 6) < 5 * np.sqrt(1 / n)


@pytest.mark.parametrize("fraction", [0.001, 0.25, 0.5, 0.999])
def test_a_value_is_rounded_up_with_the_probability_of_its_fraction(fraction):
    n = 100_000
    vector = np.full(n, 100 + fraction, np.float32)
    vector[::1024] = 127
    decoded, _, _ = round_trip(vector, Int8(block=1024, rounding="stochastic"), key=8)
    others = np.arange(n) % 1024 != 0
    exact = float(np.float32(100 + fraction)) - 100
    deviation = np.sqrt(exact * (1 - exact) / others.sum())
    assert abs((decoded[others] == 101).mean() - exact) < 5 * deviation + ARITHMETIC


def test_stochastic_rounding_depends_on_the_key_and_on_nothing_else():
    vector = np.linspace(-1, 1, 1000, dtype=np.float32)
    layout, codec = Layout.flat(1000), Int8(rounding="stochastic")
    packet = encode(vector, codec, layout=layout, key=1)
    np.random.seed(0)  # global state must not matter
    assert encode(vector, codec, layout=layout, key=1) == packet
    assert encode(vector, codec, layout=layout, key=2) != packet


def test_rounding_draws_by_the_index_in_the_vector_not_in_the_segment():
    codec, ramp = Int8(rounding="stochastic"), np.linspace(-1, 1, 512, dtype=np.float32)
    vector = np.concatenate([ramp, ramp])
    cut = Layout([Segment("a", (512,)), Segment("b", (512,))])
    whole = decode(encode(vector, codec, layout=Layout.flat(1024), key=3), Layout.flat(1024))
    parts = decode(encode(vector, codec, layout=cut, key=3), cut)
    assert np.array_equal(whole, parts)
    assert not np.array_equal(parts[:512], parts[512:])


def test_large_vectors_are_worked_in_pieces_with_the_same_result(rng):
    # 70,000 values pass the internal piece size; each block alone must give the same levels.
    vector = rng.normal(size=70_003).astype(np.float32)
    decoded, _, _ = round_trip(vector, Int8(block=1000, rounding="stochastic"), key=9)
    last = vector[69_000:70_000]
    scale = np.abs(last).max() / np.float32(127)
    y = last * (np.float32(1) / scale)
    halves = random_halves(key=9, first_index=69_000, count=1000)
    expected = np.floor((np.rint(y * 65536.0) + halves) / 65536).astype(np.float32) * scale
    assert np.array_equal(decoded[69_000:70_000], expected.astype(np.float32))


@pytest.mark.parametrize("block", [15, 65537, 0, -256, 256.0, True, "256"])
def test_block_out_of_range_is_refused(block):
    with pytest.raises(ValueError, match=r"codec\.block=.*: must be an integer 16\.\.65536; try 256"):
        Int8(block=block)


def test_unknown_rounding_is_refused():
    with pytest.raises(ValueError, match=r"codec\.rounding='up': must be nearest or stochastic"):
        Int8(rounding="up")


def test_floating_point_traps_of_the_caller_are_not_sprung():
    with np.errstate(all="raise"):
        decoded, _, _ = round_trip([FLT_MAX, 2.0**-149, -1.0], Int8(rounding="stochastic"))
        tiny, _, _ = round_trip([2.0**-149, 2.0**-130])
    assert np.isfinite(decoded).all()
    assert not tiny.any()
