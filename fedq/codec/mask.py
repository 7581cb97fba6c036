"""Encode a pruning mask (which values of a layout are not pruned) and decode it. Does not know models or rounds.

docs/packet-format.md describes the format byte by byte.
"""

import struct

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedq.codec.entropy import deflate, inflate
from fedq.codec.header import DIGEST_BYTES, as_view, check_round
from fedq.codec.layout import Layout, Segment
from fedq.codec.malformed import MalformedUpdate

MAGIC = b"FQMK"
VERSION = 1
# magic, version, reserved, round, body length, layout digest
_FIELDS = struct.Struct(f"<4sHHIQ{DIGEST_BYTES}s")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
# Deflated bits are hardly longer than plain bits; no encoder makes them twice as long (plus a little for few bits).
_LONGEST, _SLACK = 2, 64


def prunable(segment: Segment) -> bool:
    """Whether a segment may be pruned: two axes or more, 256 values or more, and not sent as float32."""
    return segment.role == "averaged" and len(segment.shape) >= 2 and not segment.verbatim


def write(mask: NDArray[np.bool_], layout: Layout, *, round: int) -> bytes:
    """Encode `mask` (bool, shape (layout.size,), True where a value is not pruned).

    A pruned segment must be prunable and must have at least one value that is not pruned; else ValueError.
    """
    check_round(round)
    parts = _parts(layout)
    pruned = [part for part in parts if not mask[part].all()]
    flags = np.array([part in pruned for part in parts], bool)
    kept = np.concatenate([mask[part] for part in pruned]) if pruned else np.empty(0, bool)
    if np.count_nonzero(kept) + (mask.size - kept.size) != np.count_nonzero(mask):
        raise ValueError("the mask prunes values of segments that are not prunable; see fedq.codec.mask.prunable")
    body = np.packbits(flags, bitorder="little").tobytes() + deflate(np.packbits(kept, bitorder="little").tobytes())
    fields = _FIELDS.pack(MAGIC, VERSION, 0, round, len(body), layout.digest)
    return b"".join((fields, _CHECKSUM.pack(_checksum(fields, body)), body))


def read(data: bytes | bytearray | memoryview, layout: Layout, *, round: int) -> NDArray[np.bool_]:
    """Read the mask of `write`; MalformedUpdate for other bytes. Inflates no more bits than the layout has."""
    view = as_view(data)
    if len(view) < HEADER_BYTES:
        raise MalformedUpdate("length", f"{len(view)} bytes: a mask has at least {HEADER_BYTES}")
    magic, version, reserved, sent, body_length, digest = _FIELDS.unpack_from(view)
    if magic != MAGIC:
        raise MalformedUpdate("magic", f"starts with {magic.hex()}: a mask starts with {MAGIC.hex()}")
    if version != VERSION:
        raise MalformedUpdate("version", f"mask version {version}: this version of fedq reads {VERSION}")
    if len(view) != HEADER_BYTES + body_length:
        reason = "length" if len(view) < HEADER_BYTES + body_length else "trailing"
        raise MalformedUpdate(reason, f"{len(view)} bytes: the header declares {HEADER_BYTES + body_length}")
    parts = _parts(layout)
    num_flag_bytes = -(-len(parts) // 8)
    longest = num_flag_bytes + _LONGEST * -(-sum(part.stop - part.start for part in parts) // 8) + _SLACK
    if body_length > longest:
        raise MalformedUpdate("length", f"body of {body_length} bytes: a mask of this layout has at most {longest}")
    body = view[HEADER_BYTES:]
    if _CHECKSUM.unpack_from(view, _FIELDS.size)[0] != _checksum(view[: _FIELDS.size], body):
        raise MalformedUpdate("checksum", "the bytes do not match their checksum; send the mask again")
    if reserved:
        raise MalformedUpdate("reserved", f"reserved field {reserved}: must be 0 in version {VERSION}")
    if digest != layout.digest:
        raise MalformedUpdate("layout", f"mask of layout {digest.hex()}: expected {layout.digest.hex()}")
    if sent != round:
        raise MalformedUpdate("round", f"mask of round {sent}: expected round {round}")
    if len(body) < num_flag_bytes:
        raise MalformedUpdate("length", f"body of {len(body)} bytes: this layout has {num_flag_bytes} of flags")
    flags = _bits(np.frombuffer(body[:num_flag_bytes], np.uint8), len(parts))
    pruned = [part for part, flag in zip(parts, flags, strict=True) if flag]
    if not pruned:
        raise MalformedUpdate("indices", "the mask prunes no segment; send no mask then")
    count = sum(part.stop - part.start for part in pruned)
    mask = np.ones(layout.size, bool)
    kept = _bits(np.frombuffer(inflate(body[num_flag_bytes:], -(-count // 8)), np.uint8), count)
    at = 0
    for part in pruned:
        bits = kept[at : at + part.stop - part.start]
        at += bits.size
        if not bits.any() or bits.all():
            name = layout.segment_at(part.start).name
            raise MalformedUpdate("indices", f"segment {name!r}: some of its values must be pruned and some must not")
        mask[part] = bits
    return mask


def _parts(layout: Layout) -> list[slice]:
    """The slices of the prunable segments in the vector, in order."""
    return layout.slices(prunable)


def _bits(packed: NDArray[np.uint8], count: int) -> NDArray[np.bool_]:
    bits = np.unpackbits(packed, bitorder="little")
    if bits[count:].any():
        raise MalformedUpdate("indices", "a bit set after the last one")
    return bits[:count].view(bool)


def _checksum(fields: bytes | memoryview, body: bytes | memoryview) -> int:
    state = xxhash.xxh3_64(fields)
    state.update(body)
    return state.intdigest()
