"""Ways to make a packet wrong: blind ones, and ones that know what stands where. Knows no oracle.

Mutation i of a seed is always the same one: it depends on (seed, i) alone.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
import xxhash

from fedq.codec import Layout
from tests.fuzz.oracle import Case
from tests.fuzz.seeds import BASE, HEADER_BYTES, LAYOUTS, Seed, accumulators, codecs, level_bytes, seeds

INTERESTING_BYTES = (0x00, 0x01, 0x02, 0x07, 0x08, 0x0F, 0x7F, 0x80, 0x81, 0x88, 0xAA, 0xF8, 0xFE, 0xFF)
INTERESTING_FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf")),
    *(2.0**-149, 2.0**-127, 2.0**-126, -(2.0**-126), 2.0**80, 2.0**100, 1.0000001 * 2.0**100),
    *(8454659 * 2.0**98, 8454660 * 2.0**98, 9586980 * 2.0**102, 9586981 * 2.0**102, 3.4028234663852886e38),
)
INTERESTING_NANS = tuple(struct.pack("<I", bits) for bits in (0x7F800001, 0xFFC00000, 0xFFFFFFFF, 0x7FC12345))
# name: (offset, bytes); docs/packet-format.md
HEADER_FIELDS = {
    "magic": (0, 4),
    "version": (4, 2),
    "codec": (6, 1),
    "kind": (7, 1),
    "round": (8, 4),
    "seed": (12, 4),
    "layout": (16, 16),
    "base": (32, 16),
    "block": (48, 2),
    "rounding": (50, 1),
    "flags": (51, 1),
    "fraction": (52, 4),
    "body length": (56, 8),
    "checksum": (64, 8),
}
SUMS_FIELDS = {
    "magic": (0, 4),
    "version": (4, 2),
    "reserved": (6, 2),
    "count": (8, 8),
    "layout": (16, 16),
    "bound": (32, 8),
    "total weight": (40, 24),
}
WEIGHTS = (0, -1, 2.0**-21, 2.0**20 * 1.001, float("nan"), float("inf"), None, "1", True, 1j, 10**400, np.float32(0))
VAST = Layout.flat(2**36)  # 256 GiB of float32


def case_of(*, seed: int, number: int, compiled_share: float = 0.0) -> Case:
    """Mutation `number`; packets start from each of the seeds in turn."""
    rng = Random(seed << 40 | number)
    drawn = rng.random()
    if drawn < 0.05:
        case = _sums_case(rng)
    elif drawn < 0.07:
        case = _layout_case(rng)
    else:
        known = seeds()
        case = _packet_case(known[number % len(known)], rng)
    return replace(case, compiled=rng.random() < compiled_share, measured=rng.random() < 0.03)


# --- packets ---


def _packet_case(start: Seed, rng: Random) -> Case:
    data, kinds = start.packet, []
    for _ in range(1 if rng.random() < 0.7 else rng.randint(2, 4)):
        chosen = BLIND if rng.random() < 0.4 else AWARE
        name = rng.choice(list(chosen))
        data = chosen[name](data, start, rng)
        kinds.append(name)
    # A mutation that the checksum finds says little about what stands behind it.
    if rng.random() < 0.9:
        data = sealed(data, keep_length=rng.random() < 0.1)
    case = Case("packet", data, start.layout, tuple(kinds))
    return _told(case, start, rng)


def _told(case: Case, start: Seed, rng: Random) -> Case:
    """What a receiver says beside the packet: mostly nothing wrong."""
    layout, expected, weight, held, kinds = case.layout, {}, 1.0, rng.randrange(2), list(case.kinds)
    drawn = rng.random()
    if drawn < 0.3:
        expected = dict(start.told)
    elif drawn < 0.4:
        name, other = rng.choice((("kind", "weights"), ("kind", "delta"), ("round", 8), ("base", b""), ("base", BASE)))
        expected = {name: other}
    if rng.random() < 0.1:
        expected["codec"] = rng.choice((start.codec, start.codec, rng.choice(codecs())))
    drawn = rng.random()
    if drawn < 0.05:
        weight = rng.choice(WEIGHTS)
        kinds.append("weight")
    elif drawn < 0.4:
        weight = rng.choice((2.0**-20, 0.1, 7, np.float32(1.5), 2.0**20, 2.0 ** rng.uniform(-20, 20)))
    if rng.random() < 0.03:
        held = 2
        kinds.append("sums that are full")
    data = case.data
    if rng.random() < 0.02:
        data = rng.choice(CONTAINERS)(data)
        kinds.append("container")
    if rng.random() < 0.01:
        layout = rng.choice([*LAYOUTS.values(), VAST])
        kinds.append("another layout")
        if rng.random() < 0.7 and isinstance(data, bytes) and len(data) >= HEADER_BYTES:
            data = sealed(_written(data, 16, layout.digest), keep_length=True)
    company: tuple[bytes, ...] = ()
    if layout is start.layout and rng.random() < 0.2:
        company = (start.packet,) * rng.choice((1, 3, 7, 8))
    sums = accumulators(layout)[held] if layout is not VAST else b""
    return replace(
        case,
        data=data,
        layout=layout,
        kinds=tuple(kinds),
        expected=expected,
        weight=weight,
        sums=sums,
        company=company,
    )


CONTAINERS: tuple[Callable[[bytes], Any], ...] = (
    bytearray,
    memoryview,
    lambda data: memoryview(b"\0" + data)[1:],
    lambda data: memoryview(data)[::2],
    lambda data: memoryview(data)[::-1],
    lambda data: memoryview(data[: len(data) // 4 * 4]).cast("f"),
    lambda data: np.frombuffer(data, np.uint8),
    list,
    lambda data: data.hex(),
    lambda data: None,
)


def sealed(data: bytes, *, keep_length: bool = False) -> bytes:
    """With the length and the checksum of what it holds: as a hostile sender writes it."""
    if len(data) < HEADER_BYTES:
        return data
    if not keep_length:
        data = _written(data, 56, struct.pack("<Q", len(data) - HEADER_BYTES))
    return _written(data, 64, struct.pack("<Q", xxhash.xxh3_64_intdigest(data[:64] + data[HEADER_BYTES:])))


def _written(data: bytes, offset: int, replacement: bytes) -> bytes:
    return data[:offset] + replacement + data[offset + len(replacement) :]


# --- blind ---


def _flip_bits(data: bytes, start: Seed, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_bytes(data: bytes, start: Seed, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 16))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice((rng.randrange(256), rng.choice(INTERESTING_BYTES)))
    return bytes(changed)


def _truncate(data: bytes, start: Seed, rng: Random) -> bytes:
    return data[: rng.choice((rng.randrange(len(data) + 1), max(0, len(data) - 1), len(data) - 4, HEADER_BYTES))]


def _extend(data: bytes, start: Seed, rng: Random) -> bytes:
    return data + rng.choice((b"\0", bytes(rng.randrange(1, 64)), rng.randbytes(rng.randrange(1, 64)), data))


def _splice(data: bytes, start: Seed, rng: Random) -> bytes:
    other = rng.choice(seeds()).packet
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def _duplicate(data: bytes, start: Seed, rng: Random) -> bytes:
    first, stop = _range(data, rng)
    return data[:stop] + data[first:stop] + data[stop:]


def _delete(data: bytes, start: Seed, rng: Random) -> bytes:
    first, stop = _range(data, rng)
    return data[:first] + data[stop:]


def _move(data: bytes, start: Seed, rng: Random) -> bytes:
    """A range written over another one: the length stays."""
    first, stop = _range(data, rng)
    at = rng.randrange(len(data) - (stop - first) + 1)
    return _written(data, at, data[first:stop])


def _range(data: bytes, rng: Random) -> tuple[int, int]:
    first = rng.randrange(len(data) + 1)
    return first, min(len(data), first + rng.choice((1, 4, 16, 256)))


# --- aware of what stands where ---


def _header_field(data: bytes, start: Seed, rng: Random) -> bytes:
    return _field(data, HEADER_FIELDS, rng)


def _field(data: bytes, places: dict[str, tuple[int, int]], rng: Random) -> bytes:
    """One field to a value at the edge of its range, one off what it is, or any."""
    offset, size = rng.choice(list(places.values()))
    bits, now = 8 * size, int.from_bytes(data[offset : offset + size], "little")
    value = rng.choice((0, 1, 2, 3, now - 1, now + 1, 2**bits - 1, 2 ** (bits - 1), rng.getrandbits(bits)))
    return _written(data, offset, (value % 2**bits).to_bytes(size, "little")) if len(data) >= offset + size else data


def _options(data: bytes, start: Seed, rng: Random) -> bytes:
    """Options that are known, of this codec or of another one; or a fraction at an edge."""
    if rng.random() < 0.3:
        fraction = rng.choice((0.9999999e-6, 1e-6, 1.0000001, 1.0, 0.5, 1e-30, *INTERESTING_FLOATS))
        return _written(data, 52, struct.pack("<f", fraction))
    return _written(data, 48, rng.choice(codecs()).options())


def _another_codec(data: bytes, start: Seed, rng: Random) -> bytes:
    """The body read by another codec, cut or repeated to its length, so that lengths are no reason to refuse it."""
    codec, layout = rng.choice(codecs()), start.layout
    num_scales = replace(start, codec=codec).num_scales
    length = 4 * num_scales + level_bytes(codec, layout)
    body = (data[HEADER_BYTES:] or b"\0") * (length // max(1, len(data) - HEADER_BYTES) + 1)
    if rng.random() < 0.5:  # scales that pass, so that what comes after them is read
        body = struct.pack("<f", rng.choice((0.0, 1.0, 2.0**-126, 2.0**100))) * num_scales + body
    scales, levels = body[: 4 * num_scales], body[4 * num_scales : length]
    header = _written(_written(data[:HEADER_BYTES], 6, bytes([codec.wire_id])), 48, codec.options())
    header = header if codec.uses_seed else _written(header, 12, bytes(4))
    return header + scales + (_deflated(levels) if codec.entropy else levels)


def _scale(data: bytes, start: Seed, rng: Random) -> bytes:
    """A scale, or a verbatim value."""
    for _ in range(rng.choice((1, 1, 3))):
        at = HEADER_BYTES + 4 * rng.choice((0, start.num_scales - 1, rng.randrange(start.num_scales or 1)))
        told = rng.choice((*INTERESTING_FLOATS, rng.uniform(-1e3, 1e3)))
        raw = struct.pack("<f", told) if rng.random() < 0.9 else rng.choice(INTERESTING_NANS)
        data = _written(data, at, raw) if start.num_scales else data
    return data


def _every_scale(data: bytes, start: Seed, rng: Random) -> bytes:
    good = (0.0, 1.0, 2.0**-126, 2.0**99, 2.0**100, 3.4028234663852886e38, 8454659 * 2.0**98, 9586980 * 2.0**102)
    return _written(data, HEADER_BYTES, struct.pack("<f", rng.choice(good)) * start.num_scales)


def _level(data: bytes, start: Seed, rng: Random) -> bytes:
    """Some levels to what may not be there."""

    def changed(levels: bytearray) -> None:
        for _ in range(rng.choice((1, 2, 16))):
            levels[rng.randrange(len(levels))] = rng.choice((*INTERESTING_BYTES, rng.randrange(256)))

    return _with_levels(data, start, changed)


def _every_level(data: bytes, start: Seed, rng: Random) -> bytes:
    def changed(levels: bytearray) -> None:
        how = rng.randrange(3)
        levels[:] = rng.randbytes(len(levels)) if how else bytes([rng.choice(INTERESTING_BYTES)]) * len(levels)
        if how == 1:  # no -128 of int8
            levels[:] = levels.replace(b"\x80", b"\x7f")

    return _with_levels(data, start, changed)


def _last_bits(data: bytes, start: Seed, rng: Random) -> bytes:
    """What stands after the last code of a run, where codes do not fill their bytes; or the last code itself."""

    def changed(levels: bytearray) -> None:
        stops, stop = [len(levels)], 0
        for run in start.layout.runs:
            stop += 0 if run.verbatim else start.codec.num_level_bytes(run.stop - run.start)
            stops.append(stop)
        levels[max(0, rng.choice(stops) - 1) % len(levels)] |= 1 << rng.randrange(8)

    return _with_levels(data, start, changed)


def _places(data: bytes, start: Seed, rng: Random) -> bytes:
    """The places of kept values: bits that are flipped, or moved, so that as many are set as before."""

    def changed(levels: bytearray) -> None:
        used = len(levels) if start.codec.name != "topk" else max(1, len(levels) // 3)
        for _ in range(rng.choice((1, 1, 2, 5))):
            one, other = rng.randrange(8 * used), rng.randrange(8 * used)
            bits = [levels[bit // 8] >> bit % 8 & 1 for bit in (one, other)]
            if rng.random() < 0.3:
                bits[0] ^= 1
            for bit, value in zip((one, other), reversed(bits), strict=True):
                _set_bit(levels, bit, value)

    return _with_levels(data, start, changed)


def _other_places(data: bytes, start: Seed, rng: Random) -> bytes:
    """Places of topk written anew, as docs/packet-format.md says: of which one may repeat, or reach the end."""
    if start.codec.name != "topk":
        return _places(data, start, rng)

    def changed(levels: bytearray) -> None:
        at = 0
        for run in start.layout.runs:
            if not run.verbatim:
                n = run.stop - run.start
                k, size = start.codec.num_kept(n), start.codec.num_level_bytes(n)
                places = sorted(rng.sample(range(n), k))
                where = rng.choice((0, k - 1, rng.randrange(k)))
                places[where] = rng.choice((n - 1, n, n + 1, places[where - 1], rng.randrange(n), 2 * n))
                written = _elias_fano(sorted(places) if rng.random() < 0.8 else places, n, size - k)
                levels[at : at + len(written)] = written
                at += size

    return _with_levels(data, start, changed)


def _elias_fano(places: list[int], n: int, size: int) -> bytes:
    """Into `size` bytes, without what does not fit."""
    packed, low = bytearray(size), (n // len(places)).bit_length() - 1
    bitmap = -(-low * len(places) // 8)
    for i, place in enumerate(places):
        for bit in range(low):
            _set_bit(packed, i * low + bit, place >> bit & 1)
        if (high := 8 * bitmap + (place >> low) + i) < 8 * size:
            _set_bit(packed, high, 1)
    return bytes(packed)


def _set_bit(packed: bytearray, bit: int, value: int) -> None:
    packed[bit // 8] = packed[bit // 8] & ~(1 << bit % 8) | value << bit % 8


def _levels_longer_or_shorter(data: bytes, start: Seed, rng: Random) -> bytes:
    def changed(levels: bytearray) -> None:
        if rng.random() < 0.5:
            del levels[len(levels) - rng.choice((1, 2, len(levels))) :]
        else:
            levels.extend(bytes(rng.choice((1, 2, 1000))))

    return _with_levels(data, start, changed)


def _stream(data: bytes, start: Seed, rng: Random) -> bytes:
    """The deflate stream itself."""
    kept = HEADER_BYTES + 4 * start.num_scales
    stream, size = data[kept:], start.num_level_bytes
    how = rng.randrange(9)
    if how == 0:
        stream = stream[: rng.randrange(len(stream) + 1)]
    elif how == 1:
        stream += rng.choice((b"\0", stream, rng.randbytes(9)))
    elif how == 2:
        stream = _bomb(rng.choice((size + 1, size + 32768, 2**22)))
    elif how == 3:
        stream = rng.randbytes(rng.randrange(80))
    elif how == 4:  # stored, not compressed
        stream = _deflated(bytes(size), level=0)
    elif how == 5:  # a full flush and no end
        packer = zlib.compressobj(wbits=-15)
        stream = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    elif how == 6:  # with a header
        stream = zlib.compress(bytes(size))
    elif how == 7:  # empty blocks, then what belongs there
        stream = b"\0\0\0\xff\xff" * rng.choice((1, 1000)) + stream
    else:
        stream = _flip_bits(stream, start, rng)
    return _flagged(data[:kept] + stream, rng)


def _flagged(data: bytes, rng: Random) -> bytes:
    """Mostly with the entropy flag, also where the packet was without."""
    flagged = len(data) > HEADER_BYTES and data[6] > 2 and rng.random() < 0.8
    return _written(data, 51, bytes([data[51] | 4])) if flagged else data


def _with_levels(data: bytes, start: Seed, change: Callable[[bytearray], None]) -> bytes:
    """With levels changed, inflated before and deflated after where they are."""
    kept = HEADER_BYTES + 4 * start.num_scales
    levels, entropy = bytearray(data[kept:]), start.codec.entropy
    if entropy:
        try:
            levels = bytearray(zlib.decompressobj(wbits=-15).decompress(levels, 2**16))
        except zlib.error:  # a mutation before this one
            return data
    if levels:
        change(levels)
    return data[:kept] + (_deflated(bytes(levels)) if entropy else levels)


def _deflated(levels: bytes, *, level: int = 6) -> bytes:
    packer = zlib.compressobj(level=level, wbits=-15)
    return packer.compress(levels) + packer.flush()


@cache
def _bomb(size: int) -> bytes:
    return _deflated(bytes(size))


Mutator = Callable[[bytes, Seed, Random], bytes]
BLIND: dict[str, Mutator] = {
    "flip bits": _flip_bits,
    "set bytes": _set_bytes,
    "truncate": _truncate,
    "extend": _extend,
    "splice": _splice,
    "duplicate": _duplicate,
    "delete": _delete,
    "move": _move,
}
AWARE: dict[str, Mutator] = {
    "header field": _header_field,
    "options": _options,
    "another codec": _another_codec,
    "scale": _scale,
    "every scale": _every_scale,
    "level": _level,
    "every level": _every_level,
    "last bits": _last_bits,
    "places": _places,
    "other places": _other_places,
    "levels longer or shorter": _levels_longer_or_shorter,
    "deflate stream": _stream,
}


# --- accumulators and layouts ---


def _sums_case(rng: Random) -> Case:
    start = rng.choice(seeds())
    data, name = rng.choice(accumulators(start.layout)), "sums: header field"
    if (drawn := rng.random()) < 0.5:
        for _ in range(rng.choice((1, 2, 3))):
            data = _field(data, SUMS_FIELDS, rng)
    elif drawn < 0.6:
        # A count, its weight and a bound that agree, at the edge of what the fields hold.
        name, count = "sums: count", rng.choice((0, 1, 2**32, 2**63, 2**64 - 2, 2**64 - 1))
        weight = count * 2 ** rng.choice((52, 72, 92)) + rng.choice((-1, 0, 0, 1))
        data = _written(data, 8, struct.pack("<Q", count))
        data = _written(data, 40, (weight % 2**192).to_bytes(24, "little"))
    elif drawn < 0.75 and start.layout.size:
        name, at = "sums: value", HEADER_BYTES + 8 * rng.randrange(start.layout.size)
        value = rng.choice((-(2**63), 2**63 - 1, 2**62, -1, rng.randrange(-(2**40), 2**40)))
        data = _written(data, at, struct.pack("<q", value))
    else:
        name = rng.choice(list(BLIND))
        data, name = BLIND[name](data, start, rng), f"sums: {name}"
    if rng.random() < 0.9:
        data = sealed(data, keep_length=True)
    if rng.random() < 0.02:
        data, name = rng.choice(CONTAINERS)(data), "sums: container"
    weight = rng.choice((1.0, 2.0**20, 2.0**-20))
    return Case("accumulator", data, start.layout, (name,), weight=weight, company=(start.packet,))


def _layout_case(rng: Random) -> Case:
    start = rng.choice(seeds())
    data = start.layout.to_bytes()
    for _ in range(rng.choice((1, 1, 3))):
        if rng.random() < 0.5:
            name = rng.choice(list(BLIND))
            data = BLIND[name](data, start, rng) or b"\0"
        else:  # a length, a number of dimensions, a dimension
            name, value = "number", rng.choice((0, 1, 2, 65, 255, 2**31, 2**32 - 1))
            data = _written(data, rng.randrange(len(data)), struct.pack("<I", value))
    return Case("layout", data, start.layout, (f"layout: {name}",))
