"""Random words from a key and an index, for rounding, rotation and random choice. Does not know codecs or packets.

A counter-based generator: word i depends only on (key, i), so every split of the vector into blocks, segments or
threads, and every implementation language, draws the same bits. All arithmetic is modulo 2^64:

    mix(z):   z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31
    hash(j) = mix(mix(key) + (j + 1) * 0x9E3779B97F4A7C15)
    word(i) = bits 32 (i mod 2) to 32 (i mod 2) + 31 of hash(floor(i / 2))
    half(i) = bits 16 (i mod 4) to 16 (i mod 4) + 15 of hash(floor(i / 4))

`mix` is the finaliser of SplitMix64 (Steele, Lea and Flood 2014; Vigna's constants). The key is mixed first, because
keys that differ by GOLDEN would otherwise give shifted copies of one stream. One hash gives two words, or the halves
for four rounded values, because vector units are slow at 64-bit products. The generator is not cryptographic: nothing
here needs secrecy.
"""

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB


def random_words(*, key: int, first_index: int, count: int) -> NDArray[np.uint32]:
    """Words first_index .. first_index+count-1 of the stream of `key` (0..2^64-1), uniform in 0..2^32-1."""
    return _hashes(key, first_index, count, each=2).view("<u4")[first_index % 2 :][:count]


def random_halves(*, key: int, first_index: int, count: int) -> NDArray[np.uint16]:
    """The halves with these indices, uniform in 0..2^16-1."""
    return _hashes(key, first_index, count, each=4).view("<u2")[first_index % 4 :][:count]


def _hashes(key: int, first_index: int, count: int, *, each: int) -> NDArray[np.uint64]:
    """The hashes for `count` indices from `first_index` on, where one hash serves `each` indices; little-endian."""
    hashes = np.arange(first_index // each + 1, -(-(first_index + count) // each) + 1, dtype=np.uint64)
    hashes *= np.uint64(GOLDEN)
    hashes += _mix(np.array([key], np.uint64))
    return _mix(hashes).astype("<u8", copy=False)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The SplitMix64 finaliser, in place."""
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= np.uint64(FIRST)
    np.right_shift(z, np.uint64(27), out=shifted)
    z ^= shifted
    z *= np.uint64(SECOND)
    np.right_shift(z, np.uint64(31), out=shifted)
    z ^= shifted
    return z
