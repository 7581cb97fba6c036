"""int4: 7 levels to each side of zero, or 16 Lloyd-Max levels. Knows its size; blockwise.py does the work."""

from dataclasses import dataclass
from typing import ClassVar

from fedq.codec.blockwise import Blockwise


@dataclass(frozen=True)
class Int4(Blockwise):
    """An eighth of float32."""

    name: ClassVar[str] = "int4"
    wire_id: ClassVar[int] = 4
    bits: ClassVar[int] = 4
    own_block: ClassVar[int] = 256
