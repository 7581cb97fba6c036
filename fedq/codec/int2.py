"""int2: -1, 0 and 1, or 4 Lloyd-Max levels. Knows its size; blockwise.py does the work."""

from dataclasses import dataclass
from typing import ClassVar

from fedq.codec.blockwise import Blockwise


@dataclass(frozen=True)
class Int2(Blockwise):
    """A sixteenth of float32. Stochastic without rotate it is TernGrad (arXiv:1705.07878)."""

    name: ClassVar[str] = "int2"
    wire_id: ClassVar[int] = 5
    bits: ClassVar[int] = 2
    own_block: ClassVar[int] = 1024
