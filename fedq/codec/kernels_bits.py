"""The compiled bits.py: 8 codes at a time, in the bytes of one uint64. Does not know what a code means."""

# The types are in the decorators, where numba reads them.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from fedq.core.compiled import boolean, i64, inner, kernel, reads, u8, void, writes

ONE = np.uint64(1)
BYTES = np.uint64(0x0101010101010101)


@inner
def _gather_bits(codes, packed, bits):
    """Pack 8 codes of `bits` bits, one per byte, into one item of `packed`."""
    shift, masks = np.uint64(8 - bits), _masks(bits)
    for i in range(packed.size):
        x = codes[i] & masks[0]
        x = (x | (x >> shift)) & masks[1]
        x = (x | (x >> (shift + shift))) & masks[2]
        packed[i] = x | (x >> (shift + shift + shift + shift))


@inner
def _spread_bits(packed, codes, bits, signed):
    """The inverse of `_gather_bits`; `signed`: two's complement."""
    shift, masks = np.uint64(8 - bits), _masks(bits)
    sign = np.uint64(1 << (bits - 1)) * BYTES if signed else np.uint64(0)
    for i in range(packed.size):
        x = np.uint64(packed[i])
        x = (x | (x << (shift + shift + shift + shift))) & masks[2]
        x = (x | (x << (shift + shift))) & masks[1]
        x = (x | (x << shift)) & masks[0]
        # Each sign bit s fills all bits above the code: s * (2^(9 - bits) - 2), without a carry between bytes.
        s = x & sign
        codes[i] = x | ((s << (shift + ONE)) - (s << ONE))


@inner
def _masks(bits):
    """Masks for 1, 2 and 4 adjacent codes, in each 1, 2 and 4 bytes."""
    one = np.uint64((1 << bits) - 1)
    two = np.uint64((1 << (2 * bits)) - 1)
    four = np.uint64((1 << (4 * bits)) - 1)
    return one * BYTES, two * np.uint64(0x0001000100010001), four * np.uint64(0x0000000100000001)


@kernel(void, reads(u8), i64, writes(u8))
def pack(codes, bits, packed):
    """Pack the low 1, 2 or 4 bits of each code, the first value in the lowest bits; unused bits are 0."""
    groups = codes.size // 8
    eights, out = codes[: groups * 8].view(np.uint64), packed[: groups * bits]
    if bits == 1:
        _gather_bits(eights, out, bits)
    elif bits == 2:
        _gather_bits(eights, out.view(np.uint16), bits)
    else:
        _gather_bits(eights, out.view(np.uint32), bits)
    for byte in range(groups * bits, packed.size):
        packed[byte] = 0
    for i in range(groups * 8, codes.size):
        code = (np.int64(codes[i]) & ((1 << bits) - 1)) << (i * bits & 7)
        packed[i * bits >> 3] = np.uint8(np.int64(packed[i * bits >> 3]) | code)


@kernel(boolean, reads(u8), i64, boolean, writes(u8))
def unpack(packed, bits, signed, codes):
    """Unpack codes, or with `signed` their two's complement; False if a bit after the last code is set."""
    groups = codes.size // 8
    eights, whole = codes[: groups * 8].view(np.uint64), packed[: groups * bits]
    if bits == 1:
        _spread_bits(whole, eights, bits, signed)
    elif bits == 2:
        _spread_bits(whole.view(np.uint16), eights, bits, signed)
    else:
        _spread_bits(whole.view(np.uint32), eights, bits, signed)
    half = 1 << (bits - 1)
    for i in range(groups * 8, codes.size):
        code = (np.int64(packed[i * bits >> 3]) >> (i * bits & 7)) & ((1 << bits) - 1)
        codes[i] = np.uint8((code ^ half) - half if signed else code)
    used = codes.size * bits & 7
    return used == 0 or np.int64(packed[packed.size - 1]) >> used == 0
