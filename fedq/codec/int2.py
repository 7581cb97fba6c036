"""int2: levels -1, 0 and 1, or 4 Lloyd-Max levels. blockwise.py implements the codec."""

from dataclasses import dataclass
from typing import ClassVar

from fedq.codec.blockwise import Blockwise


@dataclass(frozen=True)
class Int2(Blockwise):
    """A sixteenth of the size of float32. Stochastic rounding without `rotate` is TernGrad (arXiv:1705.07878)."""

    name: ClassVar[str] = "int2"
    wire_id: ClassVar[int] = 5
    bits: ClassVar[int] = 2
    own_block: ClassVar[int] = 1024
