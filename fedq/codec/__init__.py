"""Turn a model update into few bytes and back. Knows arrays; not torch, Flower or files."""

from fedq.codec.accumulator import Accumulator
from fedq.codec.codec import Codec
from fedq.codec.codecs import CODECS
from fedq.codec.float16 import Float16
from fedq.codec.float32 import Float32
from fedq.codec.header import VERSION, Header, Kind
from fedq.codec.int8 import Int8
from fedq.codec.layout import Layout, Role, Segment
from fedq.codec.malformed import REASONS, MalformedUpdate
from fedq.codec.packet import decode, digest, encode, packed_size, peek

FORMATS = (VERSION,)  # packet format versions that this fedq reads

__all__ = [
    "CODECS",
    "FORMATS",
    "REASONS",
    "Accumulator",
    "Codec",
    "Float16",
    "Float32",
    "Header",
    "Int8",
    "Kind",
    "Layout",
    "MalformedUpdate",
    "Role",
    "Segment",
    "decode",
    "digest",
    "encode",
    "packed_size",
    "peek",
]
