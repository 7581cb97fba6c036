"""Packets: round trips, exact lengths, and one reason for each way in which bytes can be wrong."""

import pickle
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq.codec import (
    CODECS,
    REASONS,
    Float16,
    Float32,
    Int2,
    Int4,
    Int8,
    Layout,
    MalformedUpdate,
    RandK,
    Segment,
    Sign,
    TopK,
    codec_of,
    decode,
    digest,
    encode,
    packed_size,
    peek,
    with_error_feedback,
)
from fedq.codec.header import HEADER_BYTES

FIXED_LENGTH = [
    Float32(),
    Float16(),
    Int8(),
    Int8(block=16),
    Int8(block=65536, rounding="stochastic"),
    Int8(rotate=True),
    Int4(),
    Int4(block=17, rounding="stochastic"),
    Int4(block=256, rotate=True),
    Int2(),
    Int2(rotate=True, rounding="stochastic"),
    Int2(rotate=True),
    Sign(),
    Sign(rounding="stochastic"),
    Sign(rotate=True),
    Sign(rotate=True, error_feedback=True),
    TopK(),
    TopK(fraction=0.3, rounding="stochastic"),
    RandK(fraction=0.2),
    RandK(fraction=0.2, error_feedback=True),
]
DEFLATED = [Int8(entropy=True), Int4(rotate=True, entropy=True), Sign(entropy=True), TopK(0.1, entropy=True)]
EVERY_CODEC = [*FIXED_LENGTH, *DEFLATED]
BASE = bytes(range(1, 17))


@pytest.fixture
def mixed_layout():
    """Verbatim and compressed segments, one that is not a multiple of the block, one empty."""
    return Layout(
        [
            Segment("norm", (7,)),
            Segment("conv", (3, 107)),
            Segment("empty", (0, 5)),
            Segment("head", (300,), hint="float32"),
            Segment("dense", (256,)),
        ]
    )


def refusal(data, layout, **expected):
    with pytest.raises(MalformedUpdate, match=r"^\w+: ") as caught:
        decode(data, layout, **expected)
    return caught.value.reason


def vector_or_reason(data, layout):
    try:
        return decode(data, layout)
    except MalformedUpdate as error:
        return error.reason


def forged(packet, offset, replacement):
    """A packet with other bytes at an offset and a checksum to match: what a hostile sender writes."""
    changed = bytearray(packet)
    changed[offset : offset + len(replacement)] = replacement
    changed[64:72] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(changed[:64] + changed[72:])))
    return bytes(changed)


def with_body(packet, body):
    """A packet with another body, of any length, and a header that agrees with it."""
    return forged(packet[:HEADER_BYTES] + body, 56, struct.pack("<Q", len(body)))


# --- round trips ---


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 1000])
@pytest.mark.parametrize("kind", ["weights", "delta"])
def test_float32_gives_every_bit_back(n, kind, rng):
    vector = rng.normal(size=n).astype(np.float32)
    vector[:1] = -0.0
    layout = Layout.flat(n)
    decoded = decode(encode(vector, "float32", layout=layout, kind=kind), layout, kind=kind)
    assert decoded.tobytes() == vector.tobytes()


def test_float16_rounds_to_the_nearest_half_with_ties_to_even():
    # 11 significant bits: 1 + 2^-11 and 1 + 3 * 2^-11 are ties; 2^-25 is half of the smallest subnormal.
    values = [1 + 2**-11, 1 + 3 * 2**-11, -65504, 2**-24, 2**-25, 1.5 * 2**-24]
    vector = np.zeros(256, np.float32)
    vector[:6] = values
    decoded = decode(encode(vector, "float16", layout=Layout.flat(256)), Layout.flat(256))
    assert decoded[:6].tolist() == [1, 1 + 2**-9, -65504, 2**-24, 0, 2**-23]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-65504, 65504, width=32), min_size=256, max_size=300))
def test_float16_error_is_within_the_documented_bound(values):
    vector = np.array(values, np.float32)
    layout = Layout.flat(vector.size)
    decoded = decode(encode(vector, "float16", layout=layout), layout)
    allowed = np.maximum(np.abs(vector.astype(np.float64)) * 2.0**-11, 2.0**-25)
    assert (np.abs(decoded.astype(np.float64) - vector) <= allowed).all()


def test_float16_rounds_to_zero_whatever_traps_the_caller_has_set():
    layout, vector = Layout.flat(256), np.full(256, 2.0**-30, np.float32)
    with np.errstate(all="raise"):
        assert not decode(encode(vector, "float16", layout=layout), layout).any()


def test_small_segments_may_be_beyond_float16():
    layout = Layout.flat(3)
    vector = np.array([1e30, -1e-30, 0], np.float32)
    assert np.array_equal(decode(encode(vector, "float16", layout=layout), layout), vector)


@pytest.mark.parametrize(
    "codec", [c for c in EVERY_CODEC if not (c.uses_seed and c != RandK(0.2, error_feedback=True))]
)
def test_decoding_and_encoding_again_is_stable(codec, mixed_layout, rng):
    """A decoded vector is on the codec's own grid, or within its bound of it, and never drifts off."""
    vector = rng.normal(size=mixed_layout.size).astype(np.float32)
    once = decode(encode(vector, codec, layout=mixed_layout), mixed_layout)
    again = decode(encode(once, codec, layout=mixed_layout), mixed_layout)
    assert np.abs(again - once).max() <= (0 if codec.name.startswith("float") else 2**-15 * np.abs(vector).max())


@pytest.mark.parametrize("codec", FIXED_LENGTH)
def test_packed_size_is_the_length_of_every_packet(codec, mixed_layout, rng):
    size = packed_size(codec, mixed_layout)
    for vector in (
        np.zeros(mixed_layout.size),
        rng.normal(size=mixed_layout.size),
        np.full(mixed_layout.size, 9),
    ):
        packet = encode(vector.astype(np.float32), codec, layout=mixed_layout, round=3, base=BASE, key=7)
        assert len(packet) == size


def test_packed_size_worked_by_hand(mixed_layout):
    # Values: 7 verbatim, 321, 300 verbatim, 256. int8 of block 256: 2 + 1 scales.
    assert packed_size("float32", mixed_layout) == 72 + 4 * (7 + 321 + 300 + 256)
    assert packed_size("float16", mixed_layout) == 72 + 4 * 307 + 2 * 577
    assert packed_size(Int8(), mixed_layout) == 72 + 4 * (307 + 3) + 577
    assert packed_size(Int8(block=16), mixed_layout) == 72 + 4 * (307 + 21 + 16) + 577


def test_packet_overhead_does_not_grow_with_the_number_of_tensors():
    many = Layout([Segment(f"layer{i}.weight", (10,)) for i in range(1000)])
    assert packed_size("float32", many) - 4 * many.size == 72


def test_int8_is_at_most_25_5_percent_of_float32():
    n = 1_000_000
    assert packed_size("int8", Layout.flat(n)) <= 0.255 * packed_size("float32", Layout.flat(n))


def test_encoding_leaves_the_vector_alone_and_takes_any_stride(rng):
    wide = rng.normal(size=(300, 2)).astype(np.float32)
    column, before = wide[:, 0], wide.copy()
    layout = Layout.flat(300)
    assert np.array_equal(decode(encode(column, "float32", layout=layout), layout), column)
    assert np.array_equal(wide, before)


def test_bytearray_and_memoryview_decode_as_bytes_do(rng):
    layout = Layout.flat(300)
    packet = encode(rng.normal(size=300).astype(np.float32), "int8", layout=layout)
    expected = decode(packet, layout)
    misaligned = memoryview(b"\0" + packet)[1:]
    for data in (bytearray(packet), memoryview(packet), misaligned):
        assert np.array_equal(decode(data, layout), expected)


def test_decoded_vector_is_writeable_and_owns_its_memory():
    layout = Layout.flat(3)
    packet = encode(np.ones(3, np.float32), "float32", layout=layout)
    decoded = decode(packet, layout)
    decoded[:] = 7
    assert decode(packet, layout).tolist() == [1, 1, 1]


def test_feedback_is_switched_and_nothing_else():
    assert with_error_feedback(Int8(32), True) == Int8(32, error_feedback=True)
    assert with_error_feedback(Int8(32, error_feedback=True), False) == Int8(32)
    for codec in (Float32(), TopK(), Int8(error_feedback=True)):
        assert with_error_feedback(codec, codec.error_feedback) is codec
    assert with_error_feedback(Float32(), True) == Float32()  # which loses nothing


def test_a_layout_remembers_16_codecs_and_then_starts_anew():
    layout = Layout.flat(300)
    sizes = []
    for block in range(16, 34):
        assert packed_size(Int8(block), layout) == 72 + 4 * -(-300 // block) + 300
        sizes.append(len(layout.memo))
    assert sizes == [*range(1, 17), 1, 2]


def test_codec_names_stand_for_default_options():
    layout, vector = Layout.flat(1000), np.linspace(-1, 1, 1000, dtype=np.float32)
    for name, codec in CODECS.items():
        assert encode(vector, name, layout=layout) == encode(vector, codec(), layout=layout)


def test_peek_tells_what_encode_was_told():
    layout = Layout.flat(300)
    codec = Int8(block=32, rounding="stochastic")
    header = peek(encode(np.zeros(300, np.float32), codec, layout=layout, kind="weights", round=2**32 - 1, base=BASE))
    assert (header.codec, header.kind, header.round, header.base) == ("int8", "weights", 2**32 - 1, BASE)
    assert (header.layout, header.body_length) == (layout.digest, 4 * 10 + 300)
    assert header.build_codec() == codec


def test_digest_is_of_the_little_endian_bytes():
    vector = np.array([1.5, -2], np.float32)
    assert digest(vector) == xxhash.xxh3_128_digest(struct.pack("<ff", 1.5, -2))
    assert digest(vector[::-1]) == xxhash.xxh3_128_digest(struct.pack("<ff", -2, 1.5))


# --- what encode refuses ---


@pytest.mark.parametrize("codec", EVERY_CODEC)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 6, 7, 883])
def test_encode_refuses_what_is_not_finite(codec, value, index, mixed_layout):
    vector = np.zeros(mixed_layout.size, np.float32)
    vector[index] = value
    with pytest.raises(ValueError, match=rf"vector\[{index}\]=-?(nan|inf): must be finite"):
        encode(vector, codec, layout=mixed_layout)


def test_encode_finds_nan_beyond_the_first_piece():
    vector = np.zeros(200_000, np.float32)
    vector[150_001] = np.nan
    with pytest.raises(ValueError, match=r"vector\[150001\]=nan"):
        encode(vector, "int8", layout=Layout.flat(200_000))


@pytest.mark.parametrize("value", [65504.01, -65505, 65519, 3e38])
def test_float16_refuses_what_it_cannot_carry(value):
    vector = np.zeros(600, np.float32)
    vector[400] = value
    layout = Layout([Segment("a", (300,)), Segment("b", (300,))])
    with pytest.raises(ValueError, match=r"at index 400: float16 holds at most 65504; use codec=int8"):
        encode(vector, "float16", layout=layout)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros(4, np.float32), r"vector has shape \(4,\): this layout needs \(3,\)"),
        (np.zeros(1, np.float32), r"vector has shape \(1,\)"),
        (np.zeros((3, 1), np.float32), r"vector has shape \(3, 1\)"),
        (np.zeros(3), "vector is float64"),
        (np.zeros(3, np.int8), "vector is int8"),
        ([0, 0, 0], "vector is list"),
    ],
)
def test_encode_refuses_another_vector(vector, message):
    with pytest.raises(ValueError, match=message):
        encode(vector, "float32", layout=Layout.flat(3))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"kind": "update"}, r"kind='update': must be one of weights, delta"),
        ({"round": -1}, r"round=-1: must be an integer 0\.\.2\*\*32-1"),
        ({"round": 2**32}, r"round=4294967296"),
        ({"round": 1.0}, r"round=1\.0"),
        ({"base": bytes(16)}, r"must be b'' \(none\) or the 16 bytes of fedq\.codec\.digest"),
        ({"base": b"short"}, r"base=b'short'"),
        ({"base": None}, r"base=None"),
        ({"key": -1}, r"key=-1: must be an integer 0\.\.2\*\*64-1"),
        ({"key": 2**64}, r"key=18446744073709551616"),
    ],
)
def test_encode_refuses_a_bad_argument(argument, message):
    with pytest.raises(ValueError, match=message):
        encode(np.zeros(3, np.float32), "float32", layout=Layout.flat(3), **argument)


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("int9", r"codec='int9': must be one of float32, .*, randk; did you mean int8\?"),
        (Int8, r"must be an instance or a name of CODECS"),
        (None, r"codec=None"),
    ],
)
def test_encode_refuses_an_unknown_codec(codec, message):
    with pytest.raises(ValueError, match=message):
        encode(np.zeros(3, np.float32), codec, layout=Layout.flat(3))


def test_a_codec_like_no_other_gets_no_proposal():
    with pytest.raises(ValueError, match=r"codec='gzip': must be one of float32, .*, randk$"):
        packed_size("gzip", Layout.flat(3))


@pytest.mark.parametrize("vector", [[0.0], np.zeros(1), np.zeros((1, 1), np.float32), np.zeros((), np.float32)])
def test_only_vectors_have_a_digest(vector):
    with pytest.raises(ValueError, match="digest needs a 1-D numpy float32 array"):
        digest(vector)


def test_a_codec_that_a_message_names_is_known_or_refused():
    assert codec_of("int8", Int8(block=32).options()) == Int8(block=32)
    for name, options, reason in (
        ("gzip", bytes(8), "codec"),
        ("int8", b"\xff" * 8, "options"),
        ("int8", b"", "options"),
    ):
        with pytest.raises(MalformedUpdate, match=f"^{reason}: ") as caught:
            codec_of(name, options)
        assert caught.value.reason == reason


def test_the_largest_key_is_one():
    vector, layout = np.linspace(-1, 1, 300, dtype=np.float32), Layout.flat(300)
    packets = {encode(vector, Int8(rounding="stochastic"), layout=layout, key=key) for key in (0, 1, 2**64 - 1)}
    assert len(packets) == 3
    with pytest.raises(ValueError, match=r"key=True: must be an integer"):
        encode(vector, "int8", layout=layout, key=True)


# --- what decode refuses ---


@pytest.mark.parametrize("codec", EVERY_CODEC)
def test_a_flip_of_any_byte_is_refused(codec, mixed_layout, rng):
    packet = bytearray(encode(rng.normal(size=mixed_layout.size).astype(np.float32), codec, layout=mixed_layout))
    in_header = {"magic", "version", "checksum", "length", "trailing"}
    for at in range(len(packet)):
        packet[at] ^= 0xFF
        reason = refusal(packet, mixed_layout)
        packet[at] ^= 0xFF
        assert reason in (in_header if at < HEADER_BYTES else {"checksum"})
    decode(packet, mixed_layout)


def test_a_flip_of_any_bit_of_the_header_is_refused(mixed_layout):
    packet = bytearray(encode(np.zeros(mixed_layout.size, np.float32), "int8", layout=mixed_layout))
    for bit in range(8 * HEADER_BYTES):
        packet[bit // 8] ^= 1 << bit % 8
        refusal(packet, mixed_layout)
        packet[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("codec", EVERY_CODEC)
def test_a_packet_cut_short_or_grown_is_refused(codec, mixed_layout):
    packet = encode(np.ones(mixed_layout.size, np.float32), codec, layout=mixed_layout)
    assert {refusal(packet[:n], mixed_layout) for n in range(len(packet))} == {"length"}
    assert refusal(packet + b"\0", mixed_layout) == "trailing"
    assert refusal(packet * 2, mixed_layout) == "trailing"


@pytest.mark.parametrize(
    "data",
    [None, "text", 5, [1, 2], np.zeros(100, np.uint8), memoryview(bytes(200))[::2], memoryview(b"")[::-1]],
)
def test_only_plain_bytes_are_read(data):
    reason = refusal(data, Layout.flat(3))
    assert reason == ("length" if isinstance(data, memoryview) and data.contiguous else "type")


@pytest.mark.parametrize(
    ("offset", "replacement", "reason"),
    [
        (0, b"QDEF", "magic"),
        (4, struct.pack("<H", 1), "version"),
        (4, struct.pack("<H", 3), "version"),
        (4, struct.pack("<H", 0), "version"),
        (6, b"\0", "codec"),
        (6, b"\x09", "codec"),
        (6, b"\x04", "length"),  # int8's options are int4's, but not its length
        (6, b"\x01", "options"),  # int8's options under float32
        (7, b"\0", "kind"),
        (7, b"\x03", "kind"),
        (12, struct.pack("<I", 1), "seed"),  # int8 without rotate draws nothing by it
        (16, bytes(16), "layout"),
        (48, struct.pack("<H", 14), "options"),
        (48, struct.pack("<H", 15), "length"),  # a good block, but another number of scales
        (50, b"\x02", "options"),  # Lloyd-Max without rotate
        (50, b"\x03", "options"),
        (51, b"\x08", "options"),
        (51, b"\x01", "length"),  # rotate, whose last block is a longer one
        (51, b"\x04", "deflate"),
        (52, struct.pack("<f", 0.5), "options"),  # a fraction of a codec that keeps all
        (55, b"\x80", "options"),
        (56, struct.pack("<Q", 2**63), "length"),
        (56, struct.pack("<Q", 2**64 - 1), "length"),
        (56, struct.pack("<Q", 0), "trailing"),
    ],
)
def test_a_forged_header_field_has_its_reason(offset, replacement, reason):
    layout = Layout.flat(600)
    packet = encode(np.ones(600, np.float32), "int8", layout=layout)
    decode(forged(packet, 0, b"FEDQ"), layout)  # the forger knows how to sign
    assert refusal(forged(packet, offset, replacement), layout) == reason


@pytest.mark.parametrize("codec", ["float32", "float16"])
def test_options_of_a_codec_without_options_are_zero(codec):
    packet = encode(np.ones(600, np.float32), codec, layout=Layout.flat(600))
    assert refusal(forged(packet, 55, b"\x01"), Layout.flat(600)) == "options"


def test_what_was_expected_is_checked(mixed_layout):
    vector = np.zeros(mixed_layout.size, np.float32)
    packet = encode(vector, "int8", layout=mixed_layout, kind="delta", round=4, base=BASE)
    decode(packet, mixed_layout)
    decode(packet, mixed_layout, kind="delta", round=4, base=BASE)
    assert refusal(packet, mixed_layout, round=3) == "round"
    assert refusal(packet, mixed_layout, kind="weights") == "kind"
    assert refusal(packet, mixed_layout, base=bytes(15) + b"\1") == "base"
    assert refusal(packet, mixed_layout, base=b"") == "base"
    assert refusal(packet, Layout.flat(mixed_layout.size)) == "layout"
    without_base = encode(vector, "int8", layout=mixed_layout)
    decode(without_base, mixed_layout, round=0, base=b"")
    assert refusal(without_base, mixed_layout, base=BASE) == "base"


@pytest.mark.parametrize(
    "expected", [{"round": -1}, {"round": "4"}, {"base": b"x"}, {"base": bytes(16)}, {"kind": "x"}]
)
def test_an_impossible_expectation_is_the_callers_mistake(expected):
    packet = encode(np.zeros(3, np.float32), "float32", layout=Layout.flat(3))
    with pytest.raises(ValueError, match=f"^{next(iter(expected))}=") as caught:
        decode(packet, Layout.flat(3), **expected)
    assert not isinstance(caught.value, MalformedUpdate)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -0.0, 2.0**-127, 2.0**-149, 3e38, 2.6794e36])
def test_a_bad_scale_is_refused_in_any_block(scale):
    layout = Layout([Segment("small", (5,)), Segment("large", (600,))])
    packet = encode(np.ones(605, np.float32), "int8", layout=layout)
    for block in range(3):
        forgery = forged(packet, HEADER_BYTES + 4 * (5 + block), struct.pack("<f", scale))
        assert refusal(forgery, layout) == "scale"


@pytest.mark.parametrize("scale", [0.0, 2.0**-126, 1.0, 2.679e36])
def test_the_largest_levels_of_a_good_scale_are_finite(scale):
    layout = Layout.flat(256)
    packet = encode(np.full(256, -1, np.float32), "int8", layout=layout)
    decoded = decode(forged(packet, HEADER_BYTES, struct.pack("<f", scale)), layout)
    assert decoded.tolist() == [float(np.float32(-127) * np.float32(scale))] * 256
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("index", [0, 255, 256, 599])
def test_level_minus_128_is_refused(index):
    packet = encode(np.ones(600, np.float32), "int8", layout=Layout.flat(600))
    assert refusal(forged(packet, HEADER_BYTES + 4 * 3 + index, b"\x80"), Layout.flat(600)) == "level"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
def test_a_verbatim_value_that_is_not_finite_is_refused(codec, value):
    layout = Layout([Segment("large", (300,)), Segment("small", (5,))])
    sides_before = {"float32": 300, "float16": 0, "int8": 2}[codec]
    packet = encode(np.ones(305, np.float32), codec, layout=layout)
    forgery = forged(packet, HEADER_BYTES + 4 * (sides_before + 4), struct.pack("<f", value))
    assert refusal(forgery, layout) == "nonfinite"


@pytest.mark.parametrize("half", [b"\x00\x7c", b"\x00\xfc", b"\x01\x7c", b"\xff\xff"])
def test_a_float16_value_that_is_not_finite_is_refused(half):
    packet = encode(np.ones(300, np.float32), "float16", layout=Layout.flat(300))
    assert refusal(forged(packet, HEADER_BYTES + 2 * 299, half), Layout.flat(300)) == "nonfinite"


@pytest.mark.parametrize("codec", EVERY_CODEC)
def test_a_signed_body_of_another_length_is_refused(codec, mixed_layout):
    packet = encode(np.ones(mixed_layout.size, np.float32), codec, layout=mixed_layout)
    body = packet[HEADER_BYTES:]
    reason = "deflate" if codec.entropy else "length"
    assert refusal(with_body(packet, b""), mixed_layout) == "length"
    for other in (body[:-1], body + b"\0", body * 3):
        assert refusal(with_body(packet, other), mixed_layout) == reason


@pytest.mark.parametrize("codec", DEFLATED)
def test_packed_size_is_not_known_of_deflated_levels(codec, mixed_layout):
    with pytest.raises(ValueError, match=r"codec\.entropy=True: the length depends on the values"):
        packed_size(codec, mixed_layout)


@pytest.mark.parametrize("codec", DEFLATED)
def test_deflated_levels_decode_to_what_plain_ones_do(codec, mixed_layout, rng):
    vector = rng.normal(size=mixed_layout.size).astype(np.float32)
    plain = encode(vector, replace(codec, entropy=False), layout=mixed_layout, key=3)
    deflated = encode(vector, codec, layout=mixed_layout, key=3)
    assert np.array_equal(decode(deflated, mixed_layout), decode(plain, mixed_layout))


def deflated(levels, layout, **flags):
    """A packet of int8 whose levels are what is given, deflated."""
    packet = encode(np.ones(layout.size, np.float32), Int8(entropy=True), layout=layout)
    packer = zlib.compressobj(wbits=-15)
    return with_body(packet, packet[72:76] + packer.compress(levels) + packer.flush())


def test_a_bomb_is_refused_before_it_is_inflated():
    layout = Layout.flat(256)
    bomb = deflated(bytes(2**27), layout)  # 128 MiB of zeros in 130 kB
    tracemalloc.start()
    assert refusal(bomb, layout) == "deflate"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_every_way_to_deflate_badly_is_refused():
    layout = Layout.flat(256)
    good = deflated(bytes([5] * 256), layout)
    assert decode(good, layout).any()
    body = good[HEADER_BYTES:]
    assert refusal(deflated(bytes(255), layout), layout) == "deflate"
    assert refusal(deflated(bytes(257), layout), layout) == "deflate"
    assert refusal(deflated(b"", layout), layout) == "deflate"
    assert refusal(with_body(good, body[:4]), layout) == "deflate"  # a scale and nothing
    assert refusal(with_body(good, body[:3]), layout) == "length"
    assert refusal(with_body(good, body[:4] + b"\xff" * 20), layout) == "deflate"
    assert refusal(with_body(good, body[:-1]), layout) == "deflate"
    assert refusal(with_body(good, body + b"\0"), layout) == "deflate"
    assert refusal(deflated(bytes([0x80] * 256), layout), layout) == "level"


def test_nothing_is_allocated_before_every_length_is_checked():
    layout = Layout.flat(2**36)  # 256 GiB of float32
    packet = encode(np.zeros(0, np.float32), "int8", layout=Layout.flat(0))
    bomb = forged(packet, 16, layout.digest)
    tracemalloc.start()
    assert refusal(bomb, layout) == "length"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_what_another_thread_forgets_is_worked_out_again(rng):
    """A layout remembers how packets of a codec lie, and forgets all when it has met many."""

    class Forgetful(dict):
        def __setitem__(self, codec, plan):
            pass  # cleared by another thread at once

    layout = Layout.flat(300)
    layout.__dict__["memo"] = Forgetful()
    packet = encode(rng.normal(size=300).astype(np.float32), "int8", layout=layout)
    assert np.array_equal(decode(packet, layout), decode(packet, Layout.flat(300)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_signed_mutation_gives_a_known_reason_or_a_finite_vector(data):
    layout = Layout([Segment("small", (9,)), Segment("large", (300,))])
    codec = data.draw(st.sampled_from(EVERY_CODEC))
    packet = encode(np.linspace(-3, 3, 309, dtype=np.float32), codec, layout=layout)
    offset = data.draw(st.integers(0, len(packet) - 1))
    mutation = forged(packet, offset, data.draw(st.binary(min_size=1, max_size=min(9, len(packet) - offset))))
    outcome = vector_or_reason(mutation, layout)
    assert outcome in REASONS if isinstance(outcome, str) else np.isfinite(outcome).all()


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(data):
    assert refusal(b"FEDQ" + data, Layout.flat(10)) in REASONS


# --- the error itself ---


def test_malformed_update_is_a_value_error_that_survives_pickling():
    error = MalformedUpdate("scale", "scale -1 of block 0")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, ValueError)
    assert (copy.reason, str(copy)) == ("scale", "scale: scale -1 of block 0")
    assert copy.detail == error.detail == "scale -1 of block 0"


def test_the_set_of_reasons_is_closed():
    with pytest.raises(KeyError, match="reason='oops': must be one of type, length"):
        MalformedUpdate("oops", "")
