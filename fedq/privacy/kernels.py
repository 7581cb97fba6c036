"""Compiled clipping of per-example gradients: norms, rounding to the grid and sums, in one pass each over the rows.

Each row is computed alone and in one order, so an example's share does not depend on the batch. Rows are float32 of
shape (n, d), given flat; the rounded rows are int32 in the same memory.
"""

# The types are in the decorators, where numba reads them.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from fedq.core.compiled import f4, f8, i32, i64, inner, kernel, reads, void, writes

__all__ = ["round_rows", "squared_norms", "sum_rows"]


@inner
def _sum_of_squares(values, start, width):
    """In float64, in eight partial sums: an addition takes several cycles, so one sum would wait for itself."""
    a = b = c = d = e = f = g = h = 0.0
    whole = width // 8 * 8
    for j in range(start, start + whole, 8):
        a += np.float64(values[j]) * np.float64(values[j])
        b += np.float64(values[j + 1]) * np.float64(values[j + 1])
        c += np.float64(values[j + 2]) * np.float64(values[j + 2])
        d += np.float64(values[j + 3]) * np.float64(values[j + 3])
        e += np.float64(values[j + 4]) * np.float64(values[j + 4])
        f += np.float64(values[j + 5]) * np.float64(values[j + 5])
        g += np.float64(values[j + 6]) * np.float64(values[j + 6])
        h += np.float64(values[j + 7]) * np.float64(values[j + 7])
    for j in range(start + whole, start + width):
        a += np.float64(values[j]) * np.float64(values[j])
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@kernel(void, reads(f4), i64, writes(f8))
def squared_norms(rows, width, squares):
    """Squared norm of each row in float64; the relative error is below width * 2^-53."""
    for i in range(len(squares)):
        squares[i] = _sum_of_squares(rows, i * width, width)


@kernel(void, reads(f4), writes(i32), i64, reads(f4), writes(f8))
def round_rows(rows, rounded, width, scales, squares):
    """Scale each row in float32 and round toward zero; the squared norm of the integers, exact up to 2^53."""
    for i in range(len(squares)):
        total = np.int64(0)
        for j in range(i * width, (i + 1) * width):
            level = np.int32(rows[j] * scales[i])
            rounded[j] = level
            total += np.int64(level) * np.int64(level)
        squares[i] = np.float64(total)


@kernel(void, reads(i32), i64, writes(f8))
def sum_rows(rounded, width, total):
    """Add all rows to `total`: exact, since the sums stay below 2^53."""
    for i in range(len(rounded) // width):
        start = i * width
        for j in range(width):
            total[j] += rounded[start + j]
