"""Turn a float32 vector into one packet and back. Depends on layouts and codecs; not on torch, Flower or files.

docs/packet-format.md describes the format byte by byte.
"""

import io
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedq.codec import jit
from fedq.codec.codec import Codec, Stream
from fedq.codec.codecs import as_codec, with_error_feedback
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
_PLANS = 16  # plans that a layout caches, one per codec
_SEED = 2**40 - 1  # index of the random word that becomes the seed; beyond the index of any value


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
    """Encode a vector as one packet. Its length depends only on codec and layout, and with `entropy` on the values.

    `vector`: float32, shape (layout.size,). `base`: b"", or the 16-byte digest of the weights that a delta refers to.
    `key`: 0..2^64-1, selects the random numbers of stochastic rounding and the seed of rotation or random choice. Use
    another key for each packet, so that the errors of averaged packets do not add up. ValueError for NaN, infinity or
    a value that the codec cannot represent.

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
    plan = _plan(codec, layout)
    num_scales, num_level_bytes = plan.num_scales, plan.num_level_bytes
    jit.count(_work(codec, layout))
    seed = int(random_words(key=key, first_index=_SEED, count=1)[0]) if codec.uses_seed else 0
    # The buffer that is written is also the one that is returned: the operating system would provide new pages for
    # a second copy each time, and that would cost more than the encoding.
    packet = io.BytesIO()
    packet.seek(HEADER_BYTES + 4 * num_scales + num_level_bytes - 1)
    packet.write(b"\0")
    _write_body(packet.getbuffer()[HEADER_BYTES:], plan, values, layout, seed, key)
    if codec.entropy:
        plain, kept = packet.getvalue(), HEADER_BYTES + 4 * num_scales
        packet = io.BytesIO()
        packet.write(plain[:kept])
        packet.write(deflate(memoryview(plain)[kept:]))
    body_length = packet.tell() - HEADER_BYTES
    seal(Header(codec.name, kind, layout.digest, round, base, codec.options(), body_length, seed), packet.getbuffer())
    return packet.getvalue()


def _write_body(
    body: memoryview, plan: "_Plan", values: NDArray[np.float32], layout: Layout, seed: int, key: int
) -> None:
    scales, levels = _planes(body, plan.num_scales)
    try:
        for run, used, run_scales, run_levels in plan.runs:
            part = values[run.start : run.stop]
            used.encode_run(part, scales[run_scales], levels[run_levels], Stream(run.start, seed, key, layout.size))
    except NonFiniteError:
        at = first_nonfinite(values)
        assert at is not None
        where = f"vector[{at}]={values[at]}: must be finite"
        raise ValueError(
            f"{where}, in segment {layout.segment_at(at).name!r}; lower the learning rate or clip"
        ) from None


def decode(
    data: bytes | bytearray | memoryview,
    layout: Layout,
    *,
    round: int | None = None,
    base: bytes | None = None,
    kind: Kind | None = None,
    codec: Codec | None = None,
) -> NDArray[np.float32]:
    """Decode a packet to a float32 vector (layout.size,), all finite; MalformedUpdate for any other bytes.

    None: not checked. `base=b""` requires a packet without a base. `codec` requires a packet with these options, so
    that a sender cannot choose the cost of decoding (error feedback is not compared, since it is the sender's choice).
    Every length is checked against the layout before the vector is allocated. No more is inflated than the layout
    needs.

    >>> layout = Layout.flat(3)
    >>> packet = encode(np.array([1, -2, 0.5], np.float32), "float32", layout=layout, round=4)
    >>> decode(packet, layout, round=4).tolist()
    [1.0, -2.0, 0.5]
    >>> decode(packet, layout, round=5)
    Traceback (most recent call last):
        ...
    fedq.codec.malformed.MalformedUpdate: round: packet of round 4: expected round 5
    """
    parts = parts_of(data, layout, round=round, base=base, kind=kind, codec=codec)
    vector = np.empty(layout.size, np.float32)
    for part in parts:
        part.decode(vector[part.run.start : part.run.stop])
    return vector


@dataclass(frozen=True)
class Part:
    """One run of a packet with checked header and lengths; the contents of `scales` and `levels` are not checked."""

    run: Run
    codec: Codec
    scales: NDArray[np.float32]
    levels: NDArray[np.uint8]
    stream: Stream

    def decode(self, values: NDArray[np.float32]) -> None:
        """Decode into `values` (float32, the run's size), in place; MalformedUpdate for what encode never writes."""
        self.codec.decode_run(self.scales, self.levels, values, self.stream)


def parts_of(
    data: bytes | bytearray | memoryview,
    layout: Layout,
    *,
    round: int | None = None,
    base: bytes | None = None,
    kind: Kind | None = None,
    codec: Codec | None = None,
) -> list[Part]:
    """The runs of a packet, for `decode`. They are views of `data`, unless it was deflated."""
    header, body = open_packet(data)
    _check_expected(header, layout, round=round, base=base, kind=kind)
    sent, asked = header.build_codec(), codec
    if asked is not None and with_error_feedback(sent, False) != with_error_feedback(asked, False):
        raise MalformedUpdate("codec", f"packet in {sent}: expected {asked}")
    codec = sent
    plan = _plan(codec, layout)
    num_scales, num_level_bytes = plan.num_scales, plan.num_level_bytes
    jit.count(_work(codec, layout))
    if codec.entropy:
        if len(body) < 4 * num_scales:
            raise MalformedUpdate("length", f"body of {len(body)} bytes: this layout has {4 * num_scales} of scales")
        inflated = inflate(body[4 * num_scales :], num_level_bytes)
        scales, levels = _planes(body, num_scales)[0], np.frombuffer(inflated, np.uint8)
    elif len(body) != 4 * num_scales + num_level_bytes:
        expected = 4 * num_scales + num_level_bytes
        raise MalformedUpdate("length", f"body of {len(body)} bytes: {codec.name} gives this layout {expected}")
    else:
        scales, levels = _planes(body, num_scales)
    return [
        Part(run, used, scales[run_scales], levels[run_levels], Stream(run.start, header.seed, num_values=layout.size))
        for run, used, run_scales, run_levels in plan.runs
    ]


def peek(data: bytes | bytearray | memoryview) -> Header:
    """The header of a packet, after a check of length and checksum.

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
    plan = _plan(codec, layout)
    return HEADER_BYTES + 4 * plan.num_scales + plan.num_level_bytes


def digest(vector: NDArray[np.float32]) -> bytes:
    """XXH3-128 of the little-endian float32 bytes, 16 bytes: identifies these weights as a base.

    >>> digest(np.zeros(2, np.float32)).hex()
    '2c0a8a99dc147d5445c3b49d035665b2'
    """
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        raise ValueError("digest needs a 1-D numpy float32 array; use Layout.flatten")
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


@dataclass(frozen=True)
class _Plan:
    """The positions of a layout's runs in the body of a packet of one codec."""

    num_scales: int  # float32 values
    num_level_bytes: int
    runs: tuple[tuple[Run, Codec, slice, slice], ...]  # (run, its codec, its scales, its level bytes)


def _plan(codec: Codec, layout: Layout) -> _Plan:
    """The plan, cached in the layout: it is needed again for every packet, and a model may have many tensors."""
    plans: dict[Codec, _Plan] = layout.memo
    plan = plans.get(codec)  # one look-up: another thread may clear the cache at any time
    if plan is None:
        plan = _planned(codec, layout)
        if len(plans) >= _PLANS:  # options come from the network, so their number has no limit
            plans.clear()
        plans[codec] = plan
    return plan


def _work(codec: Codec, layout: Layout) -> int:
    """The cost in rounded and packed values; rotating a value takes as long as rounding eight."""
    return layout.size * (8 if codec.uses_seed else 1)


def _planned(codec: Codec, layout: Layout) -> _Plan:
    runs, scale, level = [], 0, 0
    for run in layout.runs:
        used, size = _VERBATIM if run.verbatim else codec, run.stop - run.start
        next_scale, next_level = scale + used.num_scales(size), level + used.num_level_bytes(size)
        runs.append((run, used, slice(scale, next_scale), slice(level, next_level)))
        scale, level = next_scale, next_level
    return _Plan(scale, level, tuple(runs))


def _planes(body: memoryview, num_scales: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return np.frombuffer(body[: 4 * num_scales], "<f4"), np.frombuffer(body[4 * num_scales :], np.uint8)
