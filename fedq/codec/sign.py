"""sign: one bit per value. blockwise.py implements the codec."""

from dataclasses import dataclass
from typing import ClassVar

from fedq.codec.blockwise import Blockwise


@dataclass(frozen=True)
class Sign(Blockwise):
    """One bit per value: signSGD (arXiv:1802.04434), with `rotate` DRIVE (arXiv:2105.08339)."""

    name: ClassVar[str] = "sign"
    wire_id: ClassVar[int] = 6
    bits: ClassVar[int] = 1
    own_block: ClassVar[int] = 1024
