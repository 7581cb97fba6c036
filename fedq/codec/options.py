"""The options of a codec as the 8 bytes of a header. Does not know what the options do."""

import struct
from dataclasses import dataclass
from typing import Literal

Rounding = Literal["nearest", "stochastic", "lloyd_max"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "stochastic", "lloyd_max")
LEAST_BLOCK, LARGEST_BLOCK = 16, 65536
_ROTATE, _FEEDBACK, _ENTROPY = 1, 2, 4
# block - 1 (so that 65536 fits), rounding, flags, fraction
_STRUCT = struct.Struct("<HBBf")


@dataclass(frozen=True)
class Options:
    """All options of codecs with levels; `fraction` is 0 for a codec that sends every value."""

    block: int
    rounding: Rounding
    rotate: bool = False
    error_feedback: bool = False
    entropy: bool = False
    fraction: float = 0.0

    def to_bytes(self) -> bytes:
        flags = _ROTATE * self.rotate | _FEEDBACK * self.error_feedback | _ENTROPY * self.entropy
        return _STRUCT.pack(self.block - 1, ROUNDINGS.index(self.rounding), flags, self.fraction)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Options":
        """Read 8 bytes; ValueError for an unknown rounding or flag. The codec checks the ranges."""
        block, rounding, flags, fraction = _STRUCT.unpack(data)
        if rounding >= len(ROUNDINGS) or flags > _ROTATE | _FEEDBACK | _ENTROPY:
            raise ValueError(f"options={data.hex()}: unknown rounding {rounding} or flags {flags}")
        rotate, error_feedback, entropy = (bool(flags & flag) for flag in (_ROTATE, _FEEDBACK, _ENTROPY))
        return cls(block + 1, ROUNDINGS[rounding], rotate, error_feedback, entropy, fraction)


def check_block(block: object) -> int:
    if type(block) is not int or not LEAST_BLOCK <= block <= LARGEST_BLOCK:
        raise ValueError(f"codec.block={block!r}: must be an integer {LEAST_BLOCK}..{LARGEST_BLOCK}; try 256")
    return block


def check_rounding(rounding: object, allowed: tuple[Rounding, ...], why: str = "") -> Rounding:
    for known in allowed:
        if rounding == known:
            return known
    raise ValueError(f"codec.rounding={rounding!r}: must be {' or '.join(allowed)}{why}")


def check_switches(**switches: object) -> None:
    for name, value in switches.items():
        if type(value) is not bool:
            raise ValueError(f"codec.{name}={value!r}: must be true or false")
