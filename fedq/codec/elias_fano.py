"""Encode increasing integers in about 2 + log2(n / k) bits each (Elias 1974, Fano 1971). Depends on integers only.

The input is k different integers below n, in increasing order. The l = max(0, floor(log2(n / k))) low bits of each are
packed one after the other. Then follows a bitmap of k + ((n - 1) >> l) bits, in which bit (integer i >> l) + i is set.
Both are padded with 0 to whole bytes, least significant bit first. The length depends only on n and k.
"""

import numpy as np
from numpy.typing import NDArray

from fedq.codec.malformed import MalformedUpdate


def num_bytes(n: int, k: int) -> int:
    low, high = _bits(n, k)
    return -(-low * k // 8) + -(-high // 8)


def write(indices: NDArray[np.int64], n: int, packed: NDArray[np.uint8]) -> None:
    """Write `indices` (int64, shape (k,), increasing, in 0..n-1) into `packed`, in place."""
    k = indices.size
    low, high = _bits(n, k)
    split = -(-low * k // 8)
    places = np.arange(low, dtype=np.int64)
    packed[:split] = np.packbits(((indices[:, None] >> places) & 1).astype(np.uint8).reshape(-1), bitorder="little")
    bitmap = np.zeros(high, np.uint8)
    bitmap[(indices >> low) + np.arange(k)] = 1
    packed[split:] = np.packbits(bitmap, bitorder="little")


def read(packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.int64]:
    """Read k indices (int64); MalformedUpdate for bytes that `write` never makes.

    These have too few or too many set bits, or an index that is repeated or out of range.
    """
    low, high = _bits(n, k)
    split = -(-low * k // 8)
    bitmap = np.unpackbits(packed[split:], bitorder="little")
    lows = np.unpackbits(packed[:split], bitorder="little")
    if bitmap[high:].any() or lows[low * k :].any():
        raise MalformedUpdate("indices", "bits after the last index: must be 0")
    places = np.flatnonzero(bitmap)
    if places.size != k:
        raise MalformedUpdate("indices", f"{places.size} indices: must be {k}")
    weights = np.left_shift(1, np.arange(low, dtype=np.int64))
    indices = ((places - np.arange(k)) << low) + lows[: low * k].reshape(k, low) @ weights
    if indices[-1] >= n or (np.diff(indices) <= 0).any():
        raise MalformedUpdate("indices", f"an index that is repeated or out of range: must increase and be below {n}")
    return indices


def _bits(n: int, k: int) -> tuple[int, int]:
    """(number of low bits of an index, number of bits of the bitmap)."""
    low = (n // k).bit_length() - 1
    return low, k + ((n - 1) >> low)
