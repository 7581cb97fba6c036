"""All codecs by name. Depends on the codec classes; does not know how a packet is built."""

from dataclasses import replace
from difflib import get_close_matches
from typing import Any, cast

from fedq.codec.codec import Codec
from fedq.codec.float16 import Float16
from fedq.codec.float32 import Float32
from fedq.codec.int2 import Int2
from fedq.codec.int4 import Int4
from fedq.codec.int8 import Int8
from fedq.codec.randk import RandK
from fedq.codec.sign import Sign
from fedq.codec.topk import TopK
from fedq.core.packet_names import UPDATE

CODECS: dict[str, type[Codec]] = {
    "float32": Float32,
    "float16": Float16,
    "int8": Int8,
    "int4": Int4,
    "int2": Int2,
    "sign": Sign,
    "topk": TopK,
    "randk": RandK,
}


def as_codec(codec: Codec | str) -> Codec:
    """Return an instance as it is, and for a name that codec with its default options."""
    if isinstance(codec, str):
        if codec not in CODECS:
            near = get_close_matches(codec, CODECS, n=1)
            fix = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"codec={codec!r}: must be one of {', '.join(CODECS)}{fix}")
        return CODECS[codec]()
    if type(codec) not in CODECS.values():
        raise ValueError(f"codec={codec!r}: must be an instance or a name of CODECS ({', '.join(CODECS)})")
    return codec


# Codecs that are accurate enough for a single vector; the others need error feedback over several updates.
FINE = ("float32", "float16", "int8", "int4")


def fine_codec(codec: Codec) -> Codec:
    """The same codec without error feedback if it is in FINE, else int8."""
    return with_error_feedback(codec, False) if codec.name in FINE else Int8()


def packet_codec(name: str, codec: Codec) -> Codec:
    """The codec of one packet of a reply: the configured codec for the update, `fine_codec` of it for any other."""
    return codec if name == UPDATE else fine_codec(codec)


def with_error_feedback(codec: Codec, error_feedback: bool) -> Codec:
    """The same codec with error feedback on or off. float32 has no quantization error and stays as it is."""
    return (
        codec
        if codec.error_feedback == error_feedback or codec.name == "float32"
        else replace(cast(Any, codec), error_feedback=error_feedback)
    )
