"""docs/packet-format.md: its test vectors are what encode writes, and its rules suffice to read them."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash

import fedq.codec
from fedq.codec import Int8, Layout, Segment, decode, digest, encode

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


def test_the_int8_vector_is_what_encode_writes(dense_layout, dense_vector):
    codec, base = Int8(block=256, rounding="stochastic"), digest(np.zeros(258, np.float32))
    packet = encode(dense_vector, codec, layout=dense_layout, round=7, base=base, key=1)
    assert packet == vector_of("int8")
    assert len(packet) == 72 + 4 * 3 + 256


def test_a_reader_written_from_the_document_alone_agrees(dense_layout, dense_vector):
    """Python's struct and XXH3 only: what a stranger would write."""
    packet = vector_of("int8")
    fields = struct.unpack_from("<4sHBBII16s16sIB3sQQ", packet)
    magic, version, codec, kind, round, reserved, layout, base, block, rounding, zeros, length, checksum = fields
    assert (magic, version, codec, kind, round, reserved) == (b"FEDQ", 1, 3, 2, 7, 0)
    assert (block, rounding, zeros, length) == (256, 1, bytes(3), len(packet) - 72)
    assert checksum == xxhash.xxh3_64_intdigest(packet[:64] + packet[72:])
    assert base == xxhash.xxh3_128_digest(bytes(4 * 258))

    def text(value):
        return struct.pack("<I", len(value)) + value

    segments = struct.pack("<I", 2)
    for name, shape in ((b"weight", (16, 16)), (b"bias", (2,))):
        segments += text(name) + text(b"float32") + text(b"averaged") + text(b"")
        segments += struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + text(b"")
    assert layout == xxhash.xxh3_128_digest(segments)

    scale, *bias = struct.unpack_from("<3f", packet, 72)
    levels = struct.unpack_from("<256b", packet, 84)
    decoded = decode(packet, dense_layout, kind="delta", round=7, base=base)
    assert decoded.tolist() == [float(np.float32(level * scale)) for level in levels] + bias
    assert bias == [0.5, -1]
    assert scale == float(np.float32(2) / np.float32(127))
    assert levels == tuple(stochastic_level(float(v), scale, i, key=1) for i, v in enumerate(dense_vector[:256]))


def stochastic_level(value, scale, i, *, key):
    """The document's formula, one value at a time."""
    mask = 2**64 - 1

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    pair_hash = mix((mix(key) + (i // 2 + 1) * 0x9E3779B97F4A7C15) & mask)
    word = pair_hash >> 32 if i % 2 else pair_hash & 0xFFFFFFFF
    y = abs(float(np.float32(value) * (np.float32(1) / np.float32(scale))))
    y = min(y, 127.0)
    level = int(y) + (1 if (word >> 8) * 2.0**-24 < y - int(y) else 0)
    return level if value >= 0 else -level


def test_the_document_gives_the_largest_scale():
    largest = np.float32(8454659 * 2.0**98)
    assert largest == fedq.codec.int8.LARGEST_SCALE
    with np.errstate(over="ignore"):
        assert np.isinf(np.nextafter(largest, np.float32(np.inf)) * np.float32(127))


def test_every_reason_is_documented():
    document = DOCUMENT.read_text(encoding="utf-8")
    assert [reason for reason in fedq.codec.REASONS if f"`{reason}`" not in document] == []
