"""int4: levels -7..7, or 16 Lloyd-Max levels. blockwise.py implements the codec."""

from dataclasses import dataclass
from typing import ClassVar

from fedq.codec.blockwise import Blockwise


@dataclass(frozen=True)
class Int4(Blockwise):
    """An eighth of the size of float32."""

    name: ClassVar[str] = "int4"
    wire_id: ClassVar[int] = 4
    bits: ClassVar[int] = 4
    own_block: ClassVar[int] = 256
