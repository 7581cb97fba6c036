"""Pack codes of 1, 2 or 4 bits into bytes. Depends on integers; does not know what a code means.

Value i lies in byte i // (8 / bits), at bit position (i % (8 / bits)) * bits; bits after the last value are 0.
"""

import numpy as np
from numpy.typing import NDArray

from fedq.codec.malformed import MalformedUpdate


def packed_bytes(num_values: int, bits: int) -> int:
    return -(-num_values * bits // 8)


def pack(codes: NDArray[np.uint8] | NDArray[np.int8], bits: int, packed: NDArray[np.uint8]) -> None:
    """Write the low `bits` bits of each code into `packed`, in place."""
    if bits == 1:
        packed[:] = np.packbits(codes.view(np.uint8), bitorder="little")
        return
    per_byte, mask = 8 // bits, np.uint8(2**bits - 1)
    padded = np.zeros(packed.size * per_byte, np.uint8)
    np.bitwise_and(codes.view(np.uint8), mask, out=padded[: codes.size])
    packed[:] = padded[::per_byte]
    for place in range(1, per_byte):
        packed |= padded[place::per_byte] << np.uint8(place * bits)


def unpack(packed: NDArray[np.uint8], bits: int, num_values: int) -> NDArray[np.uint8]:
    """Codes 0..2^bits-1 (uint8, shape (num_values,)); MalformedUpdate if a bit after the last value is set."""
    per_byte = 8 // bits
    if bits == 1:
        codes = np.unpackbits(packed, bitorder="little")
    else:
        codes = np.empty(packed.size * per_byte, np.uint8)
        for place in range(per_byte):
            np.right_shift(packed, np.uint8(place * bits), out=codes[place::per_byte])
        codes &= np.uint8(2**bits - 1)
    if codes[num_values:].any():
        raise MalformedUpdate("level", "bits after the last level: must be 0")
    return codes[:num_values]


def signed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Interpret codes as two's complement integers of `bits` bits."""
    half = np.uint8(2 ** (bits - 1))
    return ((codes ^ half) - half).view(np.int8)
