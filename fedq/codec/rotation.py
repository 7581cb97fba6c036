"""Randomized Hadamard rotation of blocks: any values in, values that look Gaussian out. Knows arrays; not scales.

A block of m values, w = 2^floor(log2 m), takes 2 steps if m = w, on all its values, and else 4, on its first w and its
last w values in turn: no padding, whatever m is. Step t flips signs and transforms, all in float32, in this order:

    value i is negated if bit i % 32 of word(i // 32) of key seed + (t + 1) * 2^32 is set   (i: index in the vector)
    v *= fl32(2^(-log2(w) / 2));  for h = 1, 2, 4, ... w/2:  v[j], v[j+h] = v[j] + v[j+h], v[j] - v[j+h]

One step would leave sparse vectors on a few values (of x = (2, 1, 0, ...) one bit would keep only the signs of the 2);
after the second, every value is a sum of many independent signs. New signs between two windows, since without them the
transform of nearly the same values would undo itself. The rotation keeps the norm; its inverse is the same backwards.
"""

import numpy as np
from numpy.typing import NDArray

from fedq.codec.rounding import random_words

# Beyond, a sum within the transform of 65536 values could overflow where it is decoded.
LARGEST_VALUE = np.float32(2.0**80)
LARGEST_SCALE = np.float32(2.0**100)


def rotate(blocks: NDArray[np.float32], *, first_index: int, seed: int) -> NDArray[np.float32]:
    """The rotated copy of each row; `first_index`: of blocks[0, 0] in the vector."""
    rotated = blocks.copy()
    for step, window in enumerate(_windows(rotated.shape[1])):
        part = rotated[:, window]
        part *= _signs(rotated.shape, window, first_index=first_index, seed=seed, step=step)
        rotated[:, window] = _hadamard(part)
    return rotated


def unrotate(blocks: NDArray[np.float32], *, first_index: int, seed: int) -> None:
    """The inverse, in place."""
    for step, window in reversed(list(enumerate(_windows(blocks.shape[1])))):
        part = _hadamard(blocks[:, window])
        part *= _signs(blocks.shape, window, first_index=first_index, seed=seed, step=step)
        blocks[:, window] = part


def _windows(width: int) -> list[slice]:
    """What each step transforms."""
    window = 1 << (width.bit_length() - 1)
    first, last = slice(0, window), slice(width - window, width)
    return [first, first] if window == width else [first, last, first, last]


def _signs(shape: tuple[int, ...], window: slice, *, first_index: int, seed: int, step: int) -> NDArray[np.float32]:
    """1 or -1 for each value of the window of each row."""
    count = shape[0] * shape[1]
    skipped = first_index % 32
    words = random_words(
        key=seed + (step + 1) * 2**32, first_index=first_index // 32, count=-(-(skipped + count) // 32)
    )
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")[skipped : skipped + count]
    return (np.float32(1) - np.float32(2) * bits.astype(np.float32)).reshape(shape)[:, window]


def _hadamard(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthonormal fast Walsh-Hadamard transform of each row, whose length is a power of two."""
    height, width = rows.shape
    x = rows * np.float32(2.0 ** (-(width.bit_length() - 1) / 2))
    half = 1
    while half < width:
        pairs = x.reshape(height, width // (2 * half), 2, half)
        total = pairs[:, :, 0] + pairs[:, :, 1]
        np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=pairs[:, :, 1])
        pairs[:, :, 0] = total
        half *= 2
    return x
