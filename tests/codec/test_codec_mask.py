"""A mask on the wire: small, as documented, and refused where one bit of it is not as it should be."""

import struct
import zlib

import numpy as np
import pytest
import xxhash

from fedq.codec import REASONS, Layout, MalformedUpdate, MaskedLayout, Segment
from fedq.codec import mask as masks
from tests.codec import independent_decoder
from tests.codec.test_packet_format_document import vector_of

LAYOUT = Layout([Segment("weight", (16, 16)), Segment("bias", (2,))])
HEADER = 44


@pytest.fixture
def mask():
    mask = np.ones(258, bool)
    mask[:256] = np.arange(256) % 10 == 0
    return mask


@pytest.fixture
def packet(mask):
    return masks.write(mask, LAYOUT, round=7)


def deflated(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def sealed(body, *, magic=b"FQMK", version=1, reserved=0, round=7, layout=LAYOUT.digest, length=None):
    """A mask packet with a checksum that is right, whatever else is not."""
    fields = struct.pack("<4sHHIQ16s", magic, version, reserved, round, len(body) if length is None else length, layout)
    return fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(fields + body)) + body


def reason_of(data, layout=LAYOUT, round=7):
    with pytest.raises(MalformedUpdate, match=r"^\w+: ") as caught:
        masks.read(data, layout, round=round)
    assert caught.value.reason in REASONS
    return caught.value.reason


def test_a_mask_comes_back(mask, packet):
    assert np.array_equal(masks.read(packet, LAYOUT, round=7), mask)


def test_the_vector_in_the_document_is_read(mask):
    assert np.array_equal(masks.read(vector_of("mask"), LAYOUT, round=7), mask)


def test_a_reader_written_from_the_document_alone_reads_it(mask, packet):
    segments = [("weight", (16, 16)), ("bias", (2,))]
    assert independent_decoder.read_mask(packet, segments) == mask.tolist()
    assert independent_decoder.kept_digest(mask.tolist(), segments) == MaskedLayout(LAYOUT, mask).layout.digest
    assert MaskedLayout(LAYOUT, mask).layout.digest.hex() == "2341e43bf4ed747d5676f2e17071a1ed"


def test_a_mask_of_a_tenth_is_hardly_more_than_its_entropy():
    """H(0.1) = 0.469 bits a value; Huffman codes of whole bytes cost a little more."""
    layout = Layout([Segment("weight", (500, 400))])
    mask = np.random.default_rng(0).random(200_000) < 0.1
    assert len(masks.write(mask, layout, round=1)) * 8 < 0.52 * 200_000


def test_a_mask_over_segments_that_are_not_prunable_is_not_written(mask):
    mask[257] = False
    with pytest.raises(ValueError, match="not prunable"):
        masks.write(mask, LAYOUT, round=7)


@pytest.mark.parametrize(
    ("segment", "prunable"),
    [
        (Segment("w", (16, 16)), True),
        (Segment("w", (8, 4, 3, 3)), True),
        (Segment("w", (15, 17)), False),
        (Segment("w", (256,)), False),
        (Segment("w", (16, 16), hint="float32"), False),
        (Segment("w", (16, 16), role="frozen"), False),
    ],
)
def test_prunable_are_matrices_of_256_values_that_a_codec_carries(segment, prunable):
    assert masks.prunable(segment) is prunable


HALF = np.packbits(np.arange(256) % 2 == 0, bitorder="little").tobytes()


def test_the_hand_made_packet_of_these_tests_is_read_where_nothing_is_wrong():
    assert masks.read(sealed(b"\x01" + deflated(HALF)), LAYOUT, round=7).sum() == 128 + 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "length"),
        (bytes(HEADER - 1), "length"),
        (bytes(500), "magic"),
        (sealed(b"\x01" + deflated(HALF), magic=b"FEDQ"), "magic"),
        (sealed(b"\x01" + deflated(HALF), version=2), "version"),
        (sealed(b"\x01" + deflated(HALF), length=1000), "length"),
        (sealed(b"\x01" + deflated(HALF)) + b"\0", "trailing"),
        (sealed(b"\x01" + deflated(HALF) + bytes(200)), "length"),
        (sealed(b"\x01" + deflated(HALF), reserved=1), "reserved"),
        (sealed(b"\x01" + deflated(HALF), layout=bytes(16)), "layout"),
        (sealed(b"\x01" + deflated(HALF), round=8), "round"),
        (sealed(b""), "length"),
        (sealed(b"\x00" + deflated(b"")), "indices"),
        (sealed(b"\x03" + deflated(HALF)), "indices"),
        (sealed(b"\x01" + b"\xff\xff"), "deflate"),
        (sealed(b"\x01" + deflated(HALF)[:-3]), "deflate"),
        (sealed(b"\x01" + deflated(HALF) + b"\0"), "deflate"),
        (sealed(b"\x01" + deflated(HALF[:-1])), "deflate"),
        (sealed(b"\x01" + deflated(bytes(90_000))), "deflate"),
        (sealed(b"\x01" + deflated(bytes(32))), "indices"),
        (sealed(b"\x01" + deflated(b"\xff" * 32)), "indices"),
    ],
)
def test_whatever_is_not_a_mask_is_refused_with_its_reason(data, reason):
    assert reason_of(data) == reason


def test_bits_after_the_last_value_are_refused():
    layout = Layout([Segment("weight", (257, 1))])
    bits = np.packbits(np.append(np.arange(257) % 2 == 0, [True]), bitorder="little").tobytes()
    assert reason_of(sealed(b"\x01" + deflated(bits), layout=layout.digest), layout) == "indices"


def test_every_flipped_bit_is_found(packet):
    for bit in range(8 * len(packet)):
        changed = bytearray(packet)
        changed[bit // 8] ^= 1 << bit % 8
        assert reason_of(bytes(changed)) in {"magic", "version", "length", "trailing", "checksum"}


def test_a_bomb_is_refused_before_it_is_inflated(monkeypatch):
    """100 MB of zeros are 100 kB deflated: more than a mask of 256 values may have."""
    monkeypatch.setattr(masks, "inflate", None)
    assert reason_of(sealed(b"\x01" + deflated(bytes(100_000_000)))) == "length"


@pytest.mark.parametrize("data", [None, "text", [1, 2], np.zeros((4, 4))[::2]])
def test_other_objects_are_refused(data):
    assert reason_of(data) == "type"
