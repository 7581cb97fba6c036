"""int8: levels -127..127. blockwise.py implements the codec."""

from dataclasses import dataclass
from typing import ClassVar

from fedq.codec.blockwise import Blockwise


@dataclass(frozen=True)
class Int8(Blockwise):
    """A quarter of the size of float32."""

    name: ClassVar[str] = "int8"
    wire_id: ClassVar[int] = 3
    bits: ClassVar[int] = 8
    own_block: ClassVar[int] = 256
