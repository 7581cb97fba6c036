"""Randomized Hadamard rotation of blocks: it makes any values look Gaussian. Depends on arrays; not on scales.

A block of w values, where w is a power of two, takes two steps. Step t (0, 1), all in float32 and in this order:

    value i is negated if bit i % 32 of word(i // 32) of key seed + (t + 1) * 2^32 is set   (i: index in the vector)
    v *= fl32(2^(-log2(w) / 2));  for h = 1, 2, 4, ... w/2:  v[j], v[j+h] = v[j] + v[j+h], v[j] - v[j+h]

After one step, sparse vectors would have only a few distinct values (of x = (2, 1, 0, ...) one bit would keep only the
signs of the 2). After the second step, every value is a sum of many independent signs. The rotation keeps the norm; its
inverse is the same steps in reverse order. Only powers of two: overlapping windows, which could cover other lengths,
leave parts that are not mixed with each other, and then no single scale is unbiased.
"""

import numpy as np
from numpy.typing import NDArray

from fedq.codec.rounding import random_words

STEPS = (0, 1)
# Beyond this, a sum within the transform of 65536 values could overflow in the decoder.
LARGEST_VALUE = np.float32(2.0**80)
LARGEST_SCALE = np.float32(2.0**100)


def rotate(blocks: NDArray[np.float32], *, first_index: int, seed: int) -> NDArray[np.float32]:
    """A rotated copy of each row; `first_index`: the index of blocks[0, 0] in the vector."""
    rotated = blocks.copy()
    for step in STEPS:
        rotated *= _signs(rotated.shape, first_index=first_index, seed=seed, step=step)
        rotated = _hadamard(rotated)
    return rotated


def unrotate(blocks: NDArray[np.float32], *, first_index: int, seed: int) -> None:
    """The inverse of `rotate`, in place."""
    for step in reversed(STEPS):
        blocks[:] = _hadamard(blocks)
        blocks *= _signs(blocks.shape, first_index=first_index, seed=seed, step=step)


def _signs(shape: tuple[int, ...], *, first_index: int, seed: int, step: int) -> NDArray[np.float32]:
    """1 or -1 for each value, float32, of `shape`."""
    count = shape[0] * shape[1]
    skipped = first_index % 32
    words = random_words(
        key=seed + (step + 1) * 2**32, first_index=first_index // 32, count=-(-(skipped + count) // 32)
    )
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")[skipped : skipped + count]
    return (np.float32(1) - np.float32(2) * bits.astype(np.float32)).reshape(shape)


def _hadamard(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthonormal fast Walsh-Hadamard transform of each row, whose length is a power of two."""
    height, width = rows.shape
    with np.errstate(under="ignore"):
        x = rows * np.float32(2.0 ** (-(width.bit_length() - 1) / 2))
        half = 1
        while half < width:
            pairs = x.reshape(height, width // (2 * half), 2, half)
            total = pairs[:, :, 0] + pairs[:, :, 1]
            np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=pairs[:, :, 1])
            pairs[:, :, 0] = total
            half *= 2
    return x
