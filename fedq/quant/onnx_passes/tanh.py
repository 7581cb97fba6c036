"""Compute a tanh between two grids on integers. Depends on ONNX; not on the rest of the graph.

onnxruntime has no tanh kernel on levels: it computes a float tanh of every value, between a DequantizeLinear and a
QuantizeLinear. It has one for a sigmoid, as a table of the 256 levels. A max-pooling before the tanh leaves fewer
values than one after it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from fedq.quant.onnx_passes.graph import Graph

# In levels: closer than this to the border between two levels, float32 kernels may disagree on the level.
_SAFE = 1e-4
_LEVELS = np.arange(256)


@dataclass(frozen=True)
class _Grid:
    """Scale and zero point of QuantizeLinear and DequantizeLinear for uint8 levels."""

    names: tuple[str, str]
    step: np.float32
    zero: int


def pool_before_tanh(graph: Graph) -> None:
    """Move max-pooling before the tanh: tanh is monotonic, so the largest level stays the largest."""
    for tanh in graph.each("Tanh"):
        before = _grid(graph, graph.maker(tanh.input[0], "DequantizeLinear"))
        pool = graph.only_reader(tanh.output[0], "MaxPool")
        if before is None or pool is None or len(pool.output) != 1:
            continue
        behind = _grid_behind(graph, pool.output[0])
        if behind is None or _table(before, behind.step, behind.zero, np.tanh) is None:
            continue
        first = graph.node("MaxPool", tanh.input[0])
        first.attribute.extend(pool.attribute)
        levels = graph.node("QuantizeLinear", first.output[0], *before.names)
        again = graph.node("DequantizeLinear", levels.output[0], *before.names)
        graph.replace(pool, [first, levels, again, graph.node("Tanh", again.output[0], to=pool.output[0])])


def tanh_as_sigmoid(graph: Graph) -> None:
    """tanh(x) = 2 sigmoid(2 x) - 1: twice the step before it; half the step and another zero point after it."""
    for tanh in graph.each("Tanh"):
        dequantize = graph.maker(tanh.input[0], "DequantizeLinear")
        before, behind = _grid(graph, dequantize), _grid_behind(graph, tanh.output[0])
        if dequantize is None or before is None or behind is None:
            continue
        twice, half = np.float32(2) * before.step, behind.step / np.float32(2)
        zero = behind.zero - round(1 / float(behind.step))
        wanted = _table(before, behind.step, behind.zero, np.tanh)
        if wanted is None or not 0 <= zero <= 255:
            continue
        found = _table(before, half, zero, lambda x: 1 / (1 + np.exp(-2 * x)))
        if found is None or not np.array_equal(found, wanted):
            continue
        doubled = graph.node("DequantizeLinear", dequantize.input[0], graph.constant(np.array(twice)), before.names[1])
        sigmoid = graph.node("Sigmoid", doubled.output[0])
        halved = graph.constant(np.array(half)), graph.constant(np.array(zero, np.uint8))
        quantize = graph.node("QuantizeLinear", sigmoid.output[0], *halved)
        known = graph.node("DequantizeLinear", quantize.output[0], *behind.names, to=tanh.output[0])
        graph.replace(tanh, [doubled, sigmoid, quantize, known])


def _grid_behind(graph: Graph, name: str) -> _Grid | None:
    """The grid on which all readers of `name` see it, or None."""
    while (reshape := graph.only_reader(name, "Reshape")) is not None:
        name = reshape.output[0]
    return _grid(graph, graph.only_reader(name, "QuantizeLinear"))


def _grid(graph: Graph, node: onnx.NodeProto | None) -> _Grid | None:
    if node is None or len(node.input) != 3:
        return None
    step, zero = graph.array(node.input[1]), graph.array(node.input[2])
    if step is None or zero is None or step.shape or step.dtype != np.float32 or zero.dtype != np.uint8:
        return None
    return _Grid((node.input[1], node.input[2]), np.float32(step), int(zero))


def _table(
    before: _Grid, step: np.float32, zero: int, function: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | None:
    """(256,) output levels of a function of the input levels; None if float32 kernels may disagree."""
    values = ((_LEVELS - before.zero).astype(np.float32) * before.step).astype(np.float64)
    exact = function(values) / float(step)
    levels = np.rint(exact)
    if np.any(0.5 - np.abs(exact - levels) < _SAFE):
        return None
    clipped: np.ndarray = np.clip(levels + zero, 0, 255)
    return clipped
