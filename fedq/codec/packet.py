"""Turn a float32 vector into one packet and back. Knows layouts and codecs; not torch, Flower or files.

docs/packet-format.md gives the format to the byte.
"""

from collections.abc import Iterator

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedq.codec.codec import Codec, Stream
from fedq.codec.codecs import as_codec
from fedq.codec.entropy import deflate, inflate
from fedq.codec.finite import NonFiniteError, first_nonfinite
from fedq.codec.float32 import Float32
from fedq.codec.header import (
    HEADER_BYTES,
    Header,
    Kind,
    check_base,
    check_kind,
    check_round,
    open_packet,
    seal,
)
from fedq.codec.layout import Layout, Run
from fedq.codec.malformed import MalformedUpdate
from fedq.codec.rounding import random_words

_VERBATIM = Float32()
_SEED = 2**40 - 1  # word of the rounding stream that becomes the seed: no value of a vector has it


def encode(
    vector: NDArray[np.float32],
    codec: Codec | str,
    *,
    layout: Layout,
    kind: Kind = "delta",
    round: int = 0,
    base: bytes = b"",
    key: int = 0,
) -> bytes:
    """One packet; its length depends on codec and layout alone, and with `entropy` on the values.

    `base`: b"" or the digest of what a delta is against. `key`: 0..2^64-1, picks the stream of stochastic
    rounding, and the seed by which values are rotated or picked: another for each packet, so that errors of packets
    that are averaged do not add up. ValueError for NaN, infinity or a value that the codec cannot carry.

    >>> update = np.linspace(-1, 1, 1000, dtype=np.float32)
    >>> packet = encode(update, "int8", layout=Layout.flat(1000), round=7)
    >>> len(packet)  # 72 + 4 scales of 4 bytes + 1000 levels
    1088
    >>> restored = decode(packet, Layout.flat(1000), round=7)
    >>> bool(np.abs(restored - update).max() <= 0.5001 / 127)
    True
    """
    codec = as_codec(codec)
    values = layout.check(vector)
    if type(key) is not int or not 0 <= key < 2**64:
        raise ValueError(f"key={key!r}: must be an integer 0..2**64-1")
    num_sides, num_level_bytes = _body(codec, layout)
    packet = bytearray(HEADER_BYTES + 4 * num_sides + num_level_bytes)
    seed = int(random_words(key=key, first_index=_SEED, count=1)[0]) if codec.uses_seed else 0
    try:
        sides, levels = _planes(memoryview(packet)[HEADER_BYTES:], num_sides)
        for run, used, run_sides, run_levels in _runs(codec, layout):
            part = values[run.start : run.stop]
            used.encode_run(part, sides[run_sides], levels[run_levels], Stream(run.start, seed, key))
    except NonFiniteError:
        at = first_nonfinite(values)
        assert at is not None
        where = f"vector[{at}]={values[at]}: must be finite"
        raise ValueError(
            f"{where}, in segment {layout.segment_at(at).name!r}; lower the learning rate or clip"
        ) from None
    if codec.entropy:
        packet = packet[: HEADER_BYTES + 4 * num_sides] + deflate(levels.data)
    body_length = len(packet) - HEADER_BYTES
    seal(Header(codec.name, kind, layout.digest, round, base, codec.options(), body_length, seed), packet)
    return bytes(packet)


def decode(
    data: bytes | bytearray | memoryview,
    layout: Layout,
    *,
    round: int | None = None,
    base: bytes | None = None,
    kind: Kind | None = None,
) -> NDArray[np.float32]:
    """The float32 vector of a packet, all finite; MalformedUpdate for any other bytes.

    None: not checked. `base=b""` asks for a packet without a base. Every length is checked against the layout
    before the vector is allocated, and no more is inflated than the layout needs.

    >>> layout = Layout.flat(3)
    >>> packet = encode(np.array([1, -2, 0.5], np.float32), "float32", layout=layout, round=4)
    >>> decode(packet, layout, round=4).tolist()
    [1.0, -2.0, 0.5]
    >>> decode(packet, layout, round=5)
    Traceback (most recent call last):
        ...
    fedq.codec.malformed.MalformedUpdate: round: packet of round 4: expected round 5
    """
    header, body = open_packet(data)
    _check_expected(header, layout, round=round, base=base, kind=kind)
    codec = header.build_codec()
    num_sides, num_level_bytes = _body(codec, layout)
    if codec.entropy:
        if len(body) < 4 * num_sides:
            raise MalformedUpdate("length", f"body of {len(body)} bytes: this layout has {4 * num_sides} of scales")
        inflated = inflate(body[4 * num_sides :], num_level_bytes)
        sides, levels = _planes(body, num_sides)[0], np.frombuffer(inflated, np.uint8)
    elif len(body) != 4 * num_sides + num_level_bytes:
        expected = 4 * num_sides + num_level_bytes
        raise MalformedUpdate("length", f"body of {len(body)} bytes: {codec.name} gives this layout {expected}")
    else:
        sides, levels = _planes(body, num_sides)
    vector = np.empty(layout.size, np.float32)
    for run, used, run_sides, run_levels in _runs(codec, layout):
        part = vector[run.start : run.stop]
        used.decode_run(sides[run_sides], levels[run_levels], part, Stream(run.start, header.seed))
    return vector


def peek(data: bytes | bytearray | memoryview) -> Header:
    """What a packet says about itself. Length and checksum are verified, so these fields are as written.

    >>> packet = encode(np.zeros(3, np.float32), "float16", layout=Layout.flat(3), kind="weights", round=2)
    >>> header = peek(packet)
    >>> header.codec, header.kind, header.round, header.base, header.body_length
    ('float16', 'weights', 2, b'', 12)
    """
    return open_packet(data)[0]


def packed_size(codec: Codec | str, layout: Layout) -> int:
    """Bytes of every packet of this codec and layout, without encoding one; ValueError with `entropy`.

    >>> packed_size("int8", Layout.flat(1_000_000))  # 72 + 3,907 scales of 4 bytes + 1,000,000 levels
    1015700
    """
    codec = as_codec(codec)
    if codec.entropy:
        raise ValueError("codec.entropy=True: the length depends on the values; use len(encode(...))")
    num_sides, num_level_bytes = _body(codec, layout)
    return HEADER_BYTES + 4 * num_sides + num_level_bytes


def digest(vector: NDArray[np.float32]) -> bytes:
    """16 bytes that name these weights as a base: XXH3-128 of the little-endian float32 bytes.

    >>> digest(np.zeros(2, np.float32)).hex()
    '2c0a8a99dc147d5445c3b49d035665b2'
    """
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        raise ValueError("digest of something else than a 1-D numpy float32 array; use Layout.flatten")
    return xxhash.xxh3_128(np.ascontiguousarray(vector, "<f4").data).digest()


def _check_expected(
    header: Header, layout: Layout, *, round: int | None, base: bytes | None, kind: Kind | None
) -> None:
    if header.layout != layout.digest:
        raise MalformedUpdate("layout", f"packet of layout {header.layout.hex()}: expected {layout.digest.hex()}")
    if kind is not None:
        check_kind(kind)
        if header.kind != kind:
            raise MalformedUpdate("kind", f"packet of kind {header.kind}: expected {kind}")
    if round is not None:
        check_round(round)
        if header.round != round:
            raise MalformedUpdate("round", f"packet of round {header.round}: expected round {round}")
    if base is not None:
        check_base(base)
        if header.base != base:
            found, expected = header.base.hex() or "none", base.hex() or "none"
            raise MalformedUpdate("base", f"packet against base {found}: expected {expected}; send weights")


def _codec_of(run: Run, codec: Codec) -> Codec:
    return _VERBATIM if run.verbatim else codec


def _body(codec: Codec, layout: Layout) -> tuple[int, int]:
    """Number of float32 sides and of level bytes."""
    pieces = [(_codec_of(run, codec), run.stop - run.start) for run in layout.runs]
    return (
        sum(used.num_sides(size) for used, size in pieces),
        sum(used.num_level_bytes(size) for used, size in pieces),
    )


def _runs(codec: Codec, layout: Layout) -> Iterator[tuple[Run, Codec, slice, slice]]:
    """Each run with its codec and its part of the sides and of the levels."""
    side = level = 0
    for run in layout.runs:
        used, size = _codec_of(run, codec), run.stop - run.start
        next_side, next_level = side + used.num_sides(size), level + used.num_level_bytes(size)
        yield run, used, slice(side, next_side), slice(level, next_level)
        side, level = next_side, next_level


def _planes(body: memoryview, num_sides: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return np.frombuffer(body[: 4 * num_sides], "<f4"), np.frombuffer(body[4 * num_sides :], np.uint8)
