"""What reading any bytes may do: a known reason, or what the bytes declare. Knows no mutation."""

import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from fedq.codec import CODECS, REASONS, Accumulator, Layout, MalformedUpdate, Segment, jit
from fedq.codec import packet as packets
from fedq.codec.blockwise import Blockwise
from fedq.codec.codecs import with_error_feedback
from fedq.codec.sparse import Sparse
from tests.codec import independent_decoder
from tests.fuzz.seeds import HEADER_BYTES

FINITE = "finite vector"
SUMS = "sums"
LAYOUT = "layout read"
OUTCOMES = (*REASONS, FINITE, SUMS, LAYOUT)
LARGEST_LAYOUT = 100_000  # values that sums are made of; of a larger layout only the refusal is looked at


class ViolationError(AssertionError):
    """Something that reading bytes must not do."""


@dataclass(frozen=True)
class Case:
    """Bytes to read and all that is told with them."""

    target: str  # a key of CHECKS
    data: Any
    layout: Layout
    kinds: tuple[str, ...] = ()  # of mutation
    expected: dict[str, Any] = field(default_factory=dict)
    weight: Any = 1.0
    sums: bytes = b""  # of the accumulator that it is added to; b"": an empty one
    company: tuple[bytes, ...] = ()  # good packets that are added before it
    compiled: bool = False  # read the second time, and sum, by the compiled kernels
    measured: bool = False  # measure what is allocated, and let the independent decoder read it: slow


def check(case: Case) -> str:
    """One of OUTCOMES; ViolationError."""
    return CHECKS[case.target](case)


def _check_packet(case: Case) -> str:
    found = _decoded(case)
    if case.measured:
        _check_peak(case, found)
    if isinstance(found, np.ndarray):
        _check_vector(case, found)
    with _kernels(case.compiled):
        again = _decoded(case)
        if _bits(again) != _bits(found):
            raise ViolationError(f"read again it gives {_shown(again)}, at first {_shown(found)}")
        if case.layout.size > LARGEST_LAYOUT:
            return found if isinstance(found, str) else FINITE
        return _check_sum(case, found)


def _decoded(case: Case) -> Any:
    return _reason_or(lambda: packets.decode(case.data, case.layout, **case.expected))


def _reason_or(read: Any) -> Any:
    """What it returns, or the reason of its MalformedUpdate; any other exception, warnings included, is a violation."""
    try:
        return read()
    except MalformedUpdate as error:
        if error.reason not in REASONS:
            raise ViolationError(f"reason {error.reason!r} is not in REASONS") from error
        return error.reason
    except Exception as error:
        raise ViolationError(f"{type(error).__name__}: {error}") from error


def _check_vector(case: Case, vector: np.ndarray) -> None:
    """Its form, and every part against what the packet declares of it."""
    if vector.dtype != np.float32 or vector.shape != (case.layout.size,):
        raise ViolationError(f"decoded to {vector.dtype} of shape {vector.shape}: layout of {case.layout.size} values")
    if not np.isfinite(vector).all():
        raise ViolationError(f"decoded to {_shown(vector)}: must be finite")
    header = packets.peek(case.data)
    data = bytes(case.data)
    told = struct.unpack_from("<4sHBB", data), *struct.unpack_from("<QQ", data, 56)
    checksum = xxhash.xxh3_64_intdigest(data[:64] + data[HEADER_BYTES:])
    must = (b"FEDQ", 2, CODECS[header.codec].wire_id, 1 + (header.kind == "delta")), len(data) - HEADER_BYTES, checksum
    _must(told == must, f"a packet of magic, version, codec, kind, length, checksum {told}: must be {must}")
    _must(data[16:32] == case.layout.digest, "a packet of another layout was accepted")
    for name, value in case.expected.items():
        found = getattr(header, name)
        if name == "codec":  # whether an error is fed back is the sender's business
            found, value = (with_error_feedback(codec, False) for codec in (header.build_codec(), value))
        _must(found == value, f"packet of {name} {found!r} was accepted as {value!r}")
    parts = packets.parts_of(case.data, case.layout)
    for part in parts:
        _check_part(part, vector[part.run.start : part.run.stop])
    if header.build_codec().entropy:
        unpacker = zlib.decompressobj(wbits=-15)
        levels = unpacker.decompress(data[HEADER_BYTES + 4 * sum(part.scales.size for part in parts) :])
        _must(len(levels) == sum(part.levels.size for part in parts), "levels that inflate to another length")
        _must(unpacker.eof and not unpacker.unused_data, "a deflate stream that does not end where the packet does")
    else:
        length = HEADER_BYTES + sum(4 * part.scales.size + part.levels.size for part in parts)
        _must(len(data) == length, f"a packet of {len(data)} bytes was accepted: its parts have {length}")
    if case.measured and _is_plain(case.layout):
        read = independent_decoder.read(data, [(segment.name, segment.shape) for segment in case.layout.segments])
        _must(vector.tolist() == read, "another reader of the same document reads other values")


def _is_plain(layout: Layout) -> bool:
    """What tests/codec/independent_decoder.py reads."""
    return all(segment == Segment(segment.name, segment.shape) for segment in layout.segments)


def _check_part(part: Any, values: np.ndarray) -> None:
    codec, scales, levels = part.codec, part.scales, part.levels
    if codec.name == "float32":
        _must(values.tobytes() == scales.tobytes(), "verbatim values are not as they stand")
    elif codec.name == "float16":
        _must(np.array_equal(values, levels.view("<f2").astype(np.float32)), "float16 values are not as they stand")
    elif isinstance(codec, Blockwise):
        lengths = _lengths(codec, values.size)
        largest = float(np.abs(codec.points.points).max()) if codec.points else codec.largest_level
        _must(scales.size == len(lengths), f"{scales.size} scales of {len(lengths)} blocks")
        _check_scales(scales)
        used = codec.num_coded(values.size) * codec.bits % 8
        _must(not used or levels[-1] >> used == 0, "a bit after the last code is set")
        if codec.rotate:
            starts = np.cumsum([0, *lengths[:-1]])
            norms = np.sqrt(np.add.reduceat(values.astype(np.float64) ** 2, starts))
            allowed = np.sqrt(lengths) * largest * scales.astype(np.float64) * (1 + 1e-3)
            _must((norms <= allowed).all(), f"norms {norms} of rotated blocks: allowed are {allowed}")
        else:
            _check_magnitudes(values, largest * np.repeat(scales, lengths).astype(np.float64))
    elif isinstance(codec, Sparse):
        _check_scales(scales)
        codes = levels[levels.size - codec.num_kept(values.size) :].view(np.int8)
        products = codes * np.repeat(scales, codec.block)[: codes.size]
        # Each at a place of its own, in the order of the places.
        kept, sent = (some[some != 0] for some in (values, products))
        _must(np.array_equal(kept, sent), f"kept are {_shown(kept)}: sent were {_shown(sent)}")
    else:
        raise ViolationError(f"codec {codec.name}: its bound is not known here; add it to tests/fuzz/oracle.py")


def _check_scales(scales: np.ndarray) -> None:
    bits = scales.view(np.uint32)  # 0, or of a positive number that is normal
    _must(((bits == 0) | (bits >= 0x00800000) & (bits < 0x7F800000)).all(), f"a scale of {_shown(scales)} was accepted")


def _check_magnitudes(values: np.ndarray, allowed: np.ndarray | float) -> None:
    # The product is rounded to float32.
    good = np.abs(values.astype(np.float64)) <= allowed * (1 + 2.0**-23)
    _must(good.all(), f"values beyond the largest level: {_shown(values)}")


def _lengths(codec: Blockwise, size: int) -> list[int]:
    """Of the blocks, as docs/packet-format.md cuts them."""
    coded, block = -(-size // 128) * 128 if codec.rotate else size, codec.num_block
    lengths = [block] * (coded // block)
    rest = coded % block
    while rest:
        width = 1 << (rest.bit_length() - 1) if codec.rotate else rest
        lengths.append(width)
        rest -= width
    return lengths


def _check_sum(case: Case, found: Any) -> str:
    """Adding gives the same reason and changes nothing, or the same sums as adding the vector; to the byte."""
    layout = case.layout
    total, twin = (Accumulator.from_bytes(case.sums, layout) if case.sums else Accumulator(layout) for _ in range(2))
    for packet in case.company:
        vector = packets.decode(packet, layout)
        _same_reason(
            _reason_or(lambda packet=packet: total.add(packet)),
            _reason_or(lambda vector=vector: twin.add_vector(vector)),
        )
    told = _reason_or(lambda: total.add(case.data, case.weight, **case.expected))
    if not _is_weight(case.weight):
        _same_reason(told, "weight")
    elif isinstance(found, str):
        _same_reason(told, found)
    else:
        before = twin.to_bytes()
        _same_reason(told, _reason_or(lambda: twin.add_vector(found, case.weight)))
        largest, factor = float(np.abs(found).max(initial=0)), float(case.weight) * 2.0**32
        _must(told == "overflow" or largest * case.weight < 2.0**21, "a value of 2^21 or more was added")
        if told is None:
            steps = np.rint(found.astype(np.float64) * factor).astype(np.int64)
            after = np.frombuffer(before[HEADER_BYTES:], "<i8") + steps
            _must(twin.to_bytes()[HEADER_BYTES:] == after.tobytes(), "the sums are not those of the formula")
        else:
            _must(twin.to_bytes() == before, f"a vector that was refused ({told}) has changed the sums")
    _must(total.to_bytes() == twin.to_bytes(), "the sums are not those of the decoded vectors that were accepted")
    if isinstance(found, str):
        return found
    return FINITE if told is None else told


def _is_weight(weight: Any) -> bool:
    number = isinstance(weight, int | float | np.integer | np.floating) and not isinstance(weight, bool)
    return bool(number and 2.0**-20 <= weight <= 2.0**20)


def _same_reason(told: Any, expected: Any) -> None:
    _must(told == expected, f"adding it gives {told}: expected {expected}")


def _check_peak(case: Case, found: Any) -> None:
    tracemalloc.start()
    try:
        _decoded(case)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    num_bytes = len(case.data) if isinstance(case.data, bytes | bytearray | memoryview) else 0
    # zlib's own state, and the temporaries of a whole run where it is small. Lengths that are wrong cost nothing more.
    values = 0 if isinstance(found, str) and found in ("length", "layout") else case.layout.size
    allowed = 96 * 1024 + 2 * num_bytes + 48 * values
    _must(peak <= allowed, f"{peak} bytes were allocated for {_shown(found)}: allowed are {allowed}")


def _check_accumulator(case: Case) -> str:
    total = _reason_or(lambda: Accumulator.from_bytes(case.data, case.layout))
    if isinstance(total, str):
        return total
    magic, version, reserved, _, layout, bound = struct.unpack_from("<4sHHQ16sQ", case.data)
    _must((magic, version, reserved, layout) == (b"FQAC", 1, 0, case.layout.digest), "a header that none has")
    sums = np.frombuffer(bytes(case.data)[HEADER_BYTES:], "<i8").tolist()
    _must(bound < 2**63 and all(abs(sum_) <= bound for sum_ in sums), "sums beyond their bound were accepted")
    with _kernels(case.compiled):
        _must(_reason_or(total.to_bytes) == bytes(case.data), "the accumulator gives other bytes than it was read from")
        _check_mean(total)
        for packet in case.company:
            before = total.to_bytes()
            if _reason_or(lambda packet=packet: total.add(packet, case.weight)) is not None:
                _must(total.to_bytes() == before, "a packet that was refused has changed the sums")
        other = Accumulator.from_bytes(case.data, case.layout)
        _reason_or(lambda: other.merge(total))
        for summed in (total, other):
            again = _reason_or(lambda summed=summed: Accumulator.from_bytes(summed.to_bytes(), case.layout))
            _must(isinstance(again, Accumulator), f"what was added to these sums cannot be handed over: {again}")
            _check_mean(summed)
    return SUMS


def _check_mean(total: Accumulator) -> None:
    if total.count:
        mean = _reason_or(total.mean)
        _must(mean.dtype == np.float32 and bool(np.isfinite(mean).all()), f"mean {_shown(mean)}: must be finite")


def _check_layout(case: Case) -> str:
    layout = _reason_or(lambda: Layout.from_bytes(case.data))
    if isinstance(layout, str):
        return layout
    _must(_reason_or(layout.to_bytes) == case.data, "the layout gives other bytes than it was read from")
    _reason_or(lambda: (layout.size, layout.runs, layout.digest))
    return LAYOUT


CHECKS = {"packet": _check_packet, "accumulator": _check_accumulator, "layout": _check_layout}


@contextmanager
def _kernels(compiled: bool) -> Iterator[None]:
    """The compiled kernels at any size, or as they are."""
    before = jit.LEAST_VALUES, jit.LEAST_WORK
    if compiled:
        jit.LEAST_VALUES = jit.LEAST_WORK = 0
    try:
        yield
    finally:
        jit.LEAST_VALUES, jit.LEAST_WORK = before


def _must(holds: Any, what: str) -> None:
    if not holds:
        raise ViolationError(what)


def _bits(found: Any) -> Any:
    return found if isinstance(found, str) else (found.dtype, found.tobytes())


def _shown(found: Any) -> str:
    return found if isinstance(found, str) else np.array2string(found, threshold=8)
