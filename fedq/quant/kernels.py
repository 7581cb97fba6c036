"""The compiled forms of `fake`, each one pass over memory where torch makes four. The bits are the same.

Depends on flat arrays. Rounding is half to even and a division is a division, as in `fake`.
"""

# The types are in the decorators, where numba reads them.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import numpy as np

from fedq.core.compiled import boolean, f4, i64, kernel, reads, void, writes

__all__ = ["fake_quantize", "fake_quantize_rows", "straight_through_gradient"]

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_BIAS_LEVELS = np.float32(2.0**30)  # as in `weights`
_SMALLEST_STEP = np.float32(2.0**-60)


@kernel(void, reads(f4), writes(f4), f4, f4, f4)
def fake_quantize(x, out, step, lowest, highest):
    """out = round(x / step), clamped to lowest..highest, times step."""
    for i in range(x.size):
        units = x[i] / step
        units = lowest if units < lowest else units  # NaN stays NaN
        units = highest if units > highest else units
        out[i] = np.rint(units) * step


@kernel(void, reads(f4), reads(f4), writes(f4), f4, f4, f4)
def straight_through_gradient(grad, x, out, step, lowest, highest):
    """out = grad where lowest < x / step < highest, else 0."""
    for i in range(x.size):
        units = x[i] / step
        out[i] = grad[i] if (units > lowest and units < highest) else _ZERO


@kernel(void, reads(f4), reads(f4), f4, f4, boolean, i64, writes(f4), writes(f4))
def fake_quantize_rows(weight, bias, input_step, limit, together, rows, fake_quantized, fake_quantized_bias):
    """Weight (rows, ...) and bias on the grids of `weights.parameter_levels`; `together`: one step for all rows.

    `input_step` 0: the bias does not change. `bias` may be empty.
    """
    columns = weight.size // rows
    steps = np.empty(rows, np.float32)
    for row in range(rows):
        largest, broken = _ZERO, False
        for i in range(row * columns, (row + 1) * columns):
            magnitude = abs(weight[i])
            broken |= magnitude != magnitude
            largest = magnitude if magnitude > largest else largest
        steps[row] = np.float32(np.nan) if broken else largest
    if together:
        largest, broken = _ZERO, False
        for row in range(rows):
            broken |= steps[row] != steps[row]
            largest = steps[row] if steps[row] > largest else largest
        steps[:] = np.float32(np.nan) if broken else largest
    on_grid = bias.size > 0 and input_step > _ZERO
    for row in range(rows):
        step = steps[row] / limit
        steps[row] = _SMALLEST_STEP if step < _SMALLEST_STEP else step
    if on_grid:
        largest, broken = _ZERO, False
        for row in range(rows):
            least = abs(bias[row]) / (input_step * _BIAS_LEVELS)
            if least > steps[row] or least != least:
                steps[row] = least
            broken |= steps[row] != steps[row]
            largest = steps[row] if steps[row] > largest else largest
        if together:
            steps[:] = np.float32(np.nan) if broken else largest
    for row in range(rows):
        step = steps[row]
        for i in range(row * columns, (row + 1) * columns):
            fake_quantized[i] = np.rint(weight[i] / step) * step
    for row in range(bias.size):
        if on_grid:
            bias_step = steps[row] * input_step
            fake_quantized_bias[row] = np.rint(bias[row] / bias_step) * bias_step
        else:
            fake_quantized_bias[row] = bias[row]
