"""int4, int2 and sign without rotation: hand-computed levels, packing, options, and bytes."""

import numpy as np
import pytest

from fedq.codec import Int2, Int4, Int8, Layout, Sign, decode, encode, packed_size, peek
from fedq.codec.bits import pack, packed_bytes, signed, unpack
from fedq.codec.rounding import random_halves
from fedq.codec.uniform import largest_scale


def round_trip(values, codec, key=0):
    vector = np.zeros(256, np.float32)
    vector[: len(values)] = values
    layout = Layout.flat(256)
    return decode(encode(vector, codec, layout=layout, key=key), layout)[: len(values)].tolist()


def test_int4_has_seven_levels_to_each_side():
    # Scale 2: ties to even, so 1 -> 0 and 3 -> 4.
    assert round_trip([14, -14, 1, 3, -5, 0, 9.1], Int4()) == [14, -14, 0, 4, -4, 0, 10]


def test_int2_has_minus_one_zero_and_one():
    assert round_trip([8, -8, 3.9, 4.1, -4, -4.1, 0], Int2()) == [8, -8, 0, 8, 0, -8, 0]


def test_sign_is_the_sign_times_the_mean_magnitude():
    # 256 values, of which these five are not 0: the mean magnitude is 16 / 256.
    assert round_trip([8, -4, 2, -1, 1], Sign(block=256)) == [1 / 16, -1 / 16, 1 / 16, -1 / 16, 1 / 16]
    assert round_trip([8, 0, 0], Sign(block=256)) == [1 / 32, -1 / 32, -1 / 32]


def test_stochastic_sign_is_the_largest_magnitude_up_or_down():
    values = round_trip([4, -4, 2, 0, -1], Sign(block=256, rounding="stochastic"), key=3)
    assert values[:2] == [4, -4]
    assert {abs(value) for value in values} == {4}


def test_stochastic_sign_follows_the_documented_formula(rng):
    vector = rng.normal(size=512).astype(np.float32)
    largest = np.abs(vector.reshape(2, 256)).max(axis=1).repeat(256)
    codec, layout = Sign(256, "stochastic"), Layout.flat(512)
    up = random_halves(key=5, first_index=0, count=512) < np.rint((vector / largest + 1) * np.float32(2**15))
    back = decode(encode(vector, codec, layout=layout, key=5), layout)
    assert back.tolist() == np.where(up, largest, -largest).tolist()


@pytest.mark.parametrize("codec", [Int4(), Int2(), Sign(), Sign(rounding="stochastic")])
def test_floating_point_traps_of_the_caller_are_not_sprung(codec):
    layout = Layout.flat(256)
    for values in (np.geomspace(2.0**-149, 1, 256), np.full(256, 2.0**-149), np.zeros(256)):
        vector = values.astype(np.float32)
        with np.errstate(all="raise"):
            assert np.isfinite(decode(encode(vector, codec, layout=layout), layout)).all()


@pytest.mark.parametrize(
    ("codec", "largest"),
    [(Int8(), 127), (Int4(), 7), (Int2(256), 1), (Sign(256), 1), (Int4(256, rotate=True), None)],
)
def test_scales_up_to_the_largest_are_read(codec, largest):
    from tests.codec.test_codec_packet import forged, refusal

    layout = Layout.flat(256)
    packet = encode(np.ones(256, np.float32), codec, layout=layout)
    limit = np.float32(2.0**100) if largest is None else largest_scale(largest)
    for scale in (0, 2.0**-126, limit):
        assert np.isfinite(decode(forged(packet, 72, np.float32(scale).tobytes()), layout)).all()
    with np.errstate(over="ignore"):
        beyond = np.nextafter(limit, np.float32(np.inf))
    for scale in (beyond, np.nextafter(np.float32(2.0**-126), np.float32(0)), np.float32(-0.0)):
        assert refusal(forged(packet, 72, scale.tobytes()), layout) == "scale"


def test_what_rotated_blocks_leave_is_cut_into_powers_of_two():
    # Values -> scales: filled up to a multiple of 128, which binary digits then cut.
    sizes = {256: 1, 257: 2, 384: 2, 385: 1, 512: 1, 4096 + 384: 3, 4096 + 385: 2}
    assert {n: Int4(rotate=True).num_scales(n) for n in sizes} == sizes
    assert [(cut.start, cut.width) for cut in Int4(rotate=True).cut(4096 + 384)] == [
        (0, 4096),
        (4096, 256),
        (4352, 128),
    ]
    assert [(cut.start, cut.width) for cut in Int4(256).cut(600)] == [(0, 256), (512, 88)]


def test_rotated_blocks_are_powers_of_two_from_256():
    assert [Int4(block, rotate=True).block for block in (256, 65536)] == [256, 65536]
    assert [Int4(block).block for block in (16, 17, 65536)] == [16, 17, 65536]


@pytest.mark.parametrize(
    "codec", [Int8(), Int4(), Int2(), Sign(), Sign(rounding="stochastic"), Int2(rounding="stochastic")]
)
@pytest.mark.parametrize("value", [2.0**-149, 2.0**-126, 1e-30, 1.0, 3.4028234663852886e38])
def test_a_block_of_one_magnitude_comes_back(codec, value):
    vector = np.tile(np.array([value, -value], np.float32), 200)
    back = decode(encode(vector, codec, layout=Layout.flat(400)), Layout.flat(400))
    # Below 2^-126 the scale is 2^-126.
    allowed = 1.001 * 2.0**-126 if value < 2.0**-126 * 127 else 2.0**-15 * value
    assert np.isfinite(back).all()
    assert np.abs(back.astype(np.float64) - vector).max() <= allowed


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 255, 256])
def test_packed_codes_come_back(bits, n, rng):
    codes = rng.integers(0, 2**bits, n).astype(np.uint8)
    packed = np.zeros(packed_bytes(n, bits), np.uint8)
    pack(codes, bits, packed)
    assert unpack(packed, bits, n).tolist() == codes.tolist()
    value = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    assert packed.tobytes() == value.to_bytes(packed.size, "little")


@pytest.mark.parametrize(("bits", "levels"), [(2, [0, 1, -2, -1]), (4, [*range(8), *range(-8, 0)])])
def test_signed_codes_are_twos_complement(bits, levels):
    assert signed(np.arange(2**bits, dtype=np.uint8), bits).tolist() == levels


@pytest.mark.parametrize(
    ("codec", "index", "byte"),
    [(Int4(), 0, 0x08), (Int4(), 127, 0x80), (Int2(256), 0, 0x02), (Int2(256), 63, 0x80)],
)
def test_the_level_below_the_lowest_is_refused(codec, index, byte):
    from tests.codec.test_codec_packet import forged, refusal

    packet = encode(np.ones(256, np.float32), codec, layout=Layout.flat(256))
    assert refusal(forged(packet, 76 + index, bytes([byte])), Layout.flat(256)) == "level"


@pytest.mark.parametrize("codec", [Int4(), Int2(1024), Sign(1024)])
def test_bits_after_the_last_level_are_refused(codec):
    from tests.codec.test_codec_packet import forged, refusal

    packet = encode(np.ones(257, np.float32), codec, layout=Layout.flat(257))
    last = packet[-1] | 0x80
    assert refusal(forged(packet, len(packet) - 1, bytes([last])), Layout.flat(257)) == "level"


@pytest.mark.parametrize(("codec", "share"), [(Int8(), 0.255), (Int4(), 0.13), (Int2(), 0.066), (Sign(), 0.034)])
def test_packets_are_as_small_as_they_claim(codec, share):
    layout = Layout.flat(1_000_000)
    assert packed_size(codec, layout) <= share * packed_size("float32", layout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 15}, r"codec\.block=15: must be an integer 16\.\.65536; try 256"),
        ({"block": 256.0}, r"codec\.block=256\.0"),
        ({"block": True}, r"codec\.block=True"),
        (
            {"block": 1000, "rotate": True},
            r"codec\.block=1000: with rotate it must be a power of two from 256; try 4096",
        ),
        ({"block": 128, "rotate": True}, r"codec\.block=128: with rotate"),
        ({"rounding": "up"}, r"codec\.rounding='up': must be nearest or stochastic"),
        ({"rounding": "lloyd_max"}, r"codec\.rounding='lloyd_max': .* lloyd_max needs rotate=true"),
        ({"rotate": 1}, r"codec\.rotate=1: must be true or false"),
        ({"error_feedback": None}, r"codec\.error_feedback=None: must be true or false"),
        ({"entropy": "yes"}, r"codec\.entropy='yes': must be true or false"),
    ],
)
@pytest.mark.parametrize("codec", [Int4, Int2, Sign])
def test_options_that_are_none_are_refused(codec, options, message):
    with pytest.raises(ValueError, match=message):
        codec(**options)


def test_int8_has_no_lloyd_max_levels():
    with pytest.raises(ValueError, match=r"lloyd_max needs rotate=true and int4, int2 or sign"):
        Int8(rotate=True, rounding="lloyd_max")


def test_what_is_left_out_is_filled_in():
    assert (Int4().block, Int4().rounding) == (256, "nearest")
    assert (Sign().block, Sign().rounding) == (1024, "nearest")
    assert (Int4(rotate=True).block, Int4(rotate=True).rounding) == (4096, "lloyd_max")
    assert (Int8(rotate=True).block, Int8(rotate=True).rounding) == (4096, "nearest")


@pytest.mark.parametrize(
    "codec", [Int4(17, "stochastic", entropy=True), Sign(512, rotate=True, error_feedback=True, entropy=True), Int2()]
)
def test_options_come_back_from_the_header(codec):
    packet = encode(np.zeros(300, np.float32), codec, layout=Layout.flat(300))
    assert peek(packet).build_codec() == codec


def test_the_largest_scales_do_not_overflow():
    with np.errstate(over="ignore"):
        for level in (1, 7, 127):
            assert np.isfinite(np.float32(level) * largest_scale(level))
            assert np.isinf(np.float32(level) * np.nextafter(largest_scale(level), np.float32(np.inf)))
