"""Random words from a key and an index, to round, rotate and pick by. Knows integers; not codecs or packets.

A counter-based generator: word i depends on (key, i) alone, so any split of the vector over blocks, segments,
threads or languages draws the same bits. All arithmetic is modulo 2^64:

    mix(z):   z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31
    hash(j) = mix(mix(key) + (j + 1) * 0x9E3779B97F4A7C15)
    word(i) = low 32 bits of hash(i / 2) for even i, high 32 bits of hash((i - 1) / 2) for odd i

`mix` is the finaliser of SplitMix64 (Steele, Lea and Flood 2014; Vigna's constants). The key is mixed first:
else keys GOLDEN apart would give shifted copies of one stream. One hash serves two values because 64-bit
products are what a vector unit is slow at. Not a cryptographic generator: nothing here needs secrecy.
"""

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB


def random_words(*, key: int, first_index: int, count: int) -> NDArray[np.uint32]:
    """Words first_index .. first_index+count-1 of the stream of `key` (0..2^64-1), uniform in 0..2^32-1."""
    first_pair = first_index // 2
    last_pair = (first_index + count + 1) // 2
    hashes = np.arange(first_pair + 1, last_pair + 1, dtype=np.uint64)
    hashes *= np.uint64(GOLDEN)
    hashes += _mix(np.array([key], np.uint64))
    words = _mix(hashes).astype("<u8", copy=False).view("<u4")
    skipped = first_index % 2
    return words[skipped : skipped + count]


def uniform(*, key: int, first_index: int, count: int) -> NDArray[np.float32]:
    """The same words as float32 in [0, 1): multiples of 2^-24, each exact."""
    u = (random_words(key=key, first_index=first_index, count=count) >> np.uint32(8)).astype(np.float32)
    u *= np.float32(2.0**-24)
    return u


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
