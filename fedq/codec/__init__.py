"""Encode a model update as a compact packet and decode it. Depends on numpy; does not know torch, Flower or files."""

from fedq.codec.accumulator import Accumulator
from fedq.codec.codec import Codec
from fedq.codec.codecs import CODECS, FINE, as_codec, fine_codec, packet_codec, with_error_feedback
from fedq.codec.float16 import Float16
from fedq.codec.float32 import Float32
from fedq.codec.header import VERSION, Header, Kind, codec_of
from fedq.codec.int2 import Int2
from fedq.codec.int4 import Int4
from fedq.codec.int8 import Int8
from fedq.codec.layout import Layout, Role, Segment
from fedq.codec.malformed import REASONS, MalformedUpdate
from fedq.codec.masked_layout import MaskedLayout
from fedq.codec.packet import decode, digest, encode, packed_size, peek
from fedq.codec.randk import RandK
from fedq.codec.sign import Sign
from fedq.codec.topk import TopK

FORMATS = (VERSION,)  # packet format versions that this version of fedq reads

__all__ = [
    "CODECS",
    "FINE",
    "FORMATS",
    "REASONS",
    "Accumulator",
    "Codec",
    "Float16",
    "Float32",
    "Header",
    "Int2",
    "Int4",
    "Int8",
    "Kind",
    "Layout",
    "MalformedUpdate",
    "MaskedLayout",
    "RandK",
    "Role",
    "Segment",
    "Sign",
    "TopK",
    "as_codec",
    "codec_of",
    "decode",
    "digest",
    "encode",
    "fine_codec",
    "packed_size",
    "packet_codec",
    "peek",
    "with_error_feedback",
]
