"""Loops that several kernels share: random words, largest magnitude. Depends on arrays; does not know codecs."""

# The types are in the decorators, where numba reads them.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from fedq.core.compiled import inner

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)
# A table replaces one of three 64-bit products per hash, because vector units are slow at 64-bit products.
STEPS = np.arange(1, 513, dtype=np.uint64) * GOLDEN
ONE = np.uint64(1)

F32_ONE = np.float32(1)
F32_ZERO = np.float32(0)
SMALLEST_SCALE = np.float32(2.0**-126)
MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits but the sign
INFINITE = np.int32(0x7F800000)


@inner
def mix(z):
    z = z ^ (z >> np.uint64(30))
    z = z * FIRST
    z = z ^ (z >> np.uint64(27))
    z = z * SECOND
    return z ^ (z >> np.uint64(31))


@inner
def fill_hashes(mixed_key, first, hashes):
    """Hashes first, first + 1, ... of a key to which `mix` was applied already."""
    counter = mixed_key + first * GOLDEN
    for start in range(0, hashes.size, STEPS.size):
        part = hashes[start : start + STEPS.size]
        for i in range(part.size):
            part[i] = mix(counter + STEPS[i])
        counter += STEPS[STEPS.size - 1]


@inner
def copy(source, target):
    """target[:] = source as a loop, because numba takes seconds to compile the slice assignment."""
    for i in range(source.size):
        target[i] = source[i]


@inner
def largest_bits(values):
    """The bits of the largest |value|; INFINITE or above if any value is infinite or NaN."""
    bits = values.view(np.int32)
    largest = np.int32(0)
    for i in range(bits.size):
        largest = max(largest, np.int32(bits[i] & MAGNITUDE))
    return largest
