"""docs/packet-format.md: its test vectors are what encode writes, and its rules suffice to read them."""

import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest

import fedq.codec
from fedq.codec import (
    Float16,
    Float32,
    Int2,
    Int4,
    Int8,
    Layout,
    RandK,
    Segment,
    Sign,
    TopK,
    decode,
    digest,
    encode,
)
from fedq.codec.uniform import largest_scale
from tests.codec import independent_decoder

DOCUMENT = Path(__file__).parents[2] / "docs" / "packet-format.md"


def vector_of(name):
    (block,) = re.findall(rf"```hex {name}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return bytes.fromhex(block)


@pytest.fixture
def dense_layout():
    return Layout([Segment("weight", (16, 16)), Segment("bias", (2,))])


@pytest.fixture
def dense_vector():
    return np.append((np.arange(256) - 128) / 64, [0.5, -1]).astype(np.float32)


def test_the_float32_vector_is_what_encode_writes():
    layout = Layout([Segment("w", (3,))])
    packet = encode(np.array([1, -2, 0.5], np.float32), "float32", layout=layout, kind="weights", round=1)
    assert packet == vector_of("float32")
    assert len(packet) == 84


VECTORS = {
    "int8": Int8(256, "stochastic"),
    "int4": Int4(),
    "int2": Int2(256, rotate=True),
    "sign": Sign(256, rotate=True, error_feedback=True),
    "topk": TopK(0.05, entropy=True),
    "randk": RandK(0.05),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_what_encode_writes(name, dense_layout, dense_vector):
    base = digest(np.zeros(258, np.float32))
    packet = encode(dense_vector, VECTORS[name], layout=dense_layout, round=7, base=base, key=1)
    assert packet == vector_of(name)


@pytest.mark.parametrize("name", VECTORS)
def test_a_reader_written_from_the_document_alone_reads_its_vectors(name, dense_layout):
    packet = vector_of(name)
    decoded = decode(packet, dense_layout, kind="delta", round=7, base=digest(np.zeros(258, np.float32)))
    assert decoded.tolist() == independent_decoder.read(packet, [("weight", (16, 16)), ("bias", (2,))])


@pytest.mark.parametrize(
    "codec",
    [
        Float32(),
        Float16(),
        Int8(16),
        Int4(17),
        Int2(),
        Sign(rounding="stochastic"),
        Int8(256, rotate=True),
        Int4(512, rotate=True, entropy=True),
        Int2(256, "stochastic", rotate=True),
        Sign(1024, rotate=True),
        TopK(0.3, rounding="stochastic"),
        RandK(0.11, error_feedback=True),
        TopK(1.0),
    ],
)
def test_that_reader_reads_segments_that_are_no_multiple_of_the_block(codec, rng):
    """Blocks that are short, merged, or the whole segment; verbatim segments between; a seed of its own."""
    shapes = [("a", (700,)), ("norm", (5,)), ("b", (257, 1)), ("c", (3, 100))]
    layout = Layout([Segment(*shape) for shape in shapes])
    vector = rng.normal(size=layout.size).astype(np.float32)
    packet = encode(vector, codec, layout=layout, key=99)
    assert decode(packet, layout).tolist() == independent_decoder.read(packet, shapes)


def test_stochastic_levels_are_those_of_the_formula(dense_vector):
    packet = vector_of("int8")
    scale, *bias = struct.unpack_from("<3f", packet, 72)
    assert bias == [0.5, -1]
    assert scale == float(np.float32(2) / np.float32(127))
    levels = struct.unpack_from("<256b", packet, 84)
    assert levels == tuple(stochastic_level(float(v), scale, i, key=1) for i, v in enumerate(dense_vector[:256]))


def stochastic_level(value, scale, i, *, key):
    """The document's formula, one value at a time."""
    half = independent_decoder.hashed(key, i // 4) >> (16 * (i % 4)) & 0xFFFF
    y = float(np.float32(value) * (np.float32(1) / np.float32(scale)))
    return math.floor((round(y * 2**16) + half) / 2**16)


@pytest.mark.parametrize(("level", "mantissa", "exponent"), [(127, 8454659, 98), (7, 9586980, 102), (1, 16777215, 104)])
def test_the_document_gives_the_largest_scales(level, mantissa, exponent):
    largest = np.float32(mantissa * 2.0**exponent)
    assert largest == largest_scale(level)
    with np.errstate(over="ignore"):
        assert np.isfinite(np.float32(level) * largest)
        assert np.isinf(np.float32(level) * np.nextafter(largest, np.float32(np.inf)))


def test_every_reason_is_documented():
    document = DOCUMENT.read_text(encoding="utf-8")
    assert [reason for reason in fedq.codec.REASONS if f"`{reason}`" not in document] == []
