"""The fixed 72 bytes before a packet's body, and the checksum over both. Does not know layouts or bodies."""

import struct
from dataclasses import dataclass
from typing import Literal

import xxhash

from fedq.codec.codec import OPTIONS_BYTES, Codec
from fedq.codec.codecs import CODECS
from fedq.codec.malformed import MalformedUpdate

Kind = Literal["weights", "delta"]
MAGIC = b"FEDQ"
VERSION = 2
KINDS: dict[int, Kind] = {1: "weights", 2: "delta"}
DIGEST_BYTES = 16
NO_BASE = bytes(DIGEST_BYTES)
# magic, version, codec id, kind, round, seed, layout digest, base digest, options, body length
_FIELDS = struct.Struct(f"<4sHBBII{DIGEST_BYTES}s{DIGEST_BYTES}s{OPTIONS_BYTES}sQ")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_CODEC_OF_ID = {codec.wire_id: codec for codec in CODECS.values()}
_ID_OF_KIND = {kind: number for number, kind in KINDS.items()}


@dataclass(frozen=True)
class Header:
    """The fields of a packet's header. `base` is b"" if there is none; lengths are in bytes."""

    codec: str
    kind: Kind
    layout: bytes
    round: int
    base: bytes
    options: bytes
    body_length: int
    seed: int = 0  # for the rotation or the choice of values; 0 if the codec needs no seed

    def build_codec(self) -> Codec:
        """The codec with the options of this packet."""
        return codec_of(self.codec, self.options)


def codec_of(name: str, options: bytes) -> Codec:
    """The codec that a message names; MalformedUpdate for an unknown name or bad options."""
    if name not in CODECS:
        raise MalformedUpdate("codec", f"codec {name!r}: known codecs are {', '.join(CODECS)}")
    try:
        return CODECS[name].from_options(options)
    except (ValueError, struct.error) as error:
        raise MalformedUpdate("options", str(error)) from error


def check_round(round: int) -> None:
    if type(round) is not int or not 0 <= round < 2**32:
        raise ValueError(f"round={round!r}: must be an integer 0..2**32-1")


def check_base(base: bytes) -> None:
    if not isinstance(base, bytes) or len(base) not in (0, DIGEST_BYTES) or base == NO_BASE:
        raise ValueError(f"base={base!r}: must be b'' (none) or the 16 bytes of fedq.codec.digest")


def check_kind(kind: Kind) -> None:
    if kind not in _ID_OF_KIND:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(_ID_OF_KIND)}")


def seal(header: Header, packet: memoryview) -> None:
    """Write header and checksum into the first 72 bytes of `packet`, whose body is already there."""
    check_round(header.round)
    check_base(header.base)
    check_kind(header.kind)
    _FIELDS.pack_into(
        packet,
        0,
        MAGIC,
        VERSION,
        CODECS[header.codec].wire_id,
        _ID_OF_KIND[header.kind],
        header.round,
        header.seed,
        header.layout,
        header.base or NO_BASE,
        header.options,
        header.body_length,
    )
    _CHECKSUM.pack_into(packet, _FIELDS.size, _checksum(packet))


def open_packet(data: bytes | bytearray | memoryview) -> tuple[Header, memoryview]:
    """Header and body, after all checks that need no layout. Copies nothing.

    The checksum is checked before the other fields: a flipped bit must not be reported as "another round".
    The checksum protects against accidents only: anyone who can write a packet can write its checksum.
    """
    view = as_view(data)
    if len(view) < HEADER_BYTES:
        raise MalformedUpdate("length", f"{len(view)} bytes: a packet has at least {HEADER_BYTES}")
    fields = _FIELDS.unpack_from(view)
    magic, version, codec_id, kind_id, round, seed, layout, base, options, body_length = fields
    if magic != MAGIC:
        raise MalformedUpdate("magic", f"starts with {magic.hex()}: a packet starts with {MAGIC.hex()}")
    if version != VERSION:
        raise MalformedUpdate("version", f"format version {version}: this version of fedq reads {VERSION}")
    length = HEADER_BYTES + body_length
    if len(view) < length:
        raise MalformedUpdate("length", f"{len(view)} bytes: the header declares {length}")
    if len(view) > length:
        raise MalformedUpdate("trailing", f"{len(view)} bytes: the header declares {length}")
    if _CHECKSUM.unpack_from(view, _FIELDS.size)[0] != _checksum(view):
        raise MalformedUpdate("checksum", "the bytes do not match their checksum; send the packet again")
    if codec_id not in _CODEC_OF_ID:
        raise MalformedUpdate("codec", f"codec id {codec_id}: known ids are {sorted(_CODEC_OF_ID)}")
    if kind_id not in KINDS:
        raise MalformedUpdate("kind", f"kind {kind_id}: known ids are {sorted(KINDS)}")
    header = Header(
        codec=_CODEC_OF_ID[codec_id].name,
        kind=KINDS[kind_id],
        layout=layout,
        round=round,
        base=b"" if base == NO_BASE else base,
        options=options,
        body_length=body_length,
        seed=seed,
    )
    if not header.build_codec().uses_seed and seed:
        raise MalformedUpdate("seed", f"seed {seed}: must be 0, since {header.codec} with these options uses no seed")
    return header, view[HEADER_BYTES:]


def as_view(data: bytes | bytearray | memoryview) -> memoryview:
    """The bytes of `data` as a memoryview, not copied."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise MalformedUpdate("type", f"{type(data).__name__}: must be bytes, bytearray or memoryview")
    try:
        return memoryview(data).cast("B")
    except (TypeError, ValueError) as error:
        raise MalformedUpdate("type", f"memoryview that is not a contiguous buffer ({error})") from error


def _checksum(packet: memoryview) -> int:
    state = xxhash.xxh3_64(packet[: _FIELDS.size])
    state.update(packet[HEADER_BYTES:])
    return state.intdigest()
