"""Compute a convolution of one to three channels on blocks of pixels. Depends on ONNX; the rest of the graph stays.

An int8 kernel multiplies four adjacent bytes at once. For an image with one channel, onnxruntime gathers single bytes,
and the float kernel is three times as fast. This pass turns adjacent pixels of a row into the channels of one position,
as many as make a multiple of four bytes. The outputs that start in these pixels are computed together, as output
channels of that position, each with the same weights shifted right by one stride. It multiplies some zeros too, but is
still faster.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from fedq.quant.onnx_passes.graph import Graph, attribute

_BYTES = 4  # bytes that a kernel multiplies at once
_MOST_OUTPUTS = 128  # channels; at 256, multiplying zeros costs as much as the pass saves
_Add = Callable[..., str]


@dataclass(frozen=True)
class _Rows:
    """The partition of an image's rows into blocks."""

    pixels: int
    channels: int
    kernel: int
    stride: int
    pads: tuple[int, int]

    @property
    def outputs(self) -> int:
        return (self.pixels + sum(self.pads) - self.kernel) // self.stride + 1

    @property
    def together(self) -> int:
        """Number of outputs at one position."""
        return _BYTES // math.gcd(_BYTES, self.channels * self.stride)

    @property
    def positions(self) -> int:
        """Number of positions; the last one may compute unused outputs."""
        return -(-self.outputs // self.together)

    @property
    def block(self) -> int:
        """Number of pixels of one position."""
        return self.stride * self.together

    @property
    def reach(self) -> int:
        """Number of blocks that the outputs of one position read."""
        return -(-(self.stride * (self.together - 1) + self.kernel) // self.block)

    @property
    def blocks(self) -> int:
        return self.positions + self.reach - 1

    @property
    def behind(self) -> int:
        """Number of pixels to pad at the end; `pads[0]` pixels are padded at the start."""
        return self.blocks * self.block - self.pixels - self.pads[0]


def convolve_blocks(graph: Graph) -> None:
    """Rewrite each convolution whose input has few channels."""
    for conv in graph.each("Conv"):
        source, weight = (graph.maker(name, "DequantizeLinear") for name in conv.input[:2])
        quantize = graph.only_reader(conv.output[0], "QuantizeLinear")
        if source is None or weight is None or quantize is None or len(source.input) != 3:
            continue
        bias = graph.maker(conv.input[2], "DequantizeLinear") if len(conv.input) > 2 else None
        kernel, zero = graph.array(weight.input[0]), graph.array(source.input[2])
        if kernel is None or kernel.ndim != 4 or zero is None or zero.shape or (bias is None) != (len(conv.input) == 2):
            continue
        rows = _rows(graph, conv, kernel.shape)
        if rows is not None:
            graph.replace(quantize, _in_blocks(graph, conv, source, (weight, bias), quantize, rows))


def _rows(graph: Graph, conv: onnx.NodeProto, kernel: tuple[int, ...]) -> _Rows | None:
    """The blocks of the rows; None if the pass cannot be applied or would not be faster."""
    strides, pads = attribute(conv, "strides", [1, 1]), attribute(conv, "pads", [0, 0, 0, 0])
    is_plain = attribute(conv, "group", 1) == 1 and list(attribute(conv, "dilations", [1, 1])) == [1, 1]
    if not is_plain or attribute(conv, "auto_pad", b"NOTSET") != b"NOTSET" or min(pads) < 0:
        return None
    shape, result = graph.shape(conv.input[0]), graph.shape(conv.output[0])
    if shape is None or result is None or len(result) != 4 or result[2] is None or result[3] is None:
        return None
    _, channels, height, width = shape
    if channels is None or height is None or width is None or channels >= _BYTES or kernel[3] < 2:
        return None
    rows = _Rows(width, channels, kernel[3], strides[1], (pads[1], pads[3]))
    return None if rows.behind < 0 or rows.outputs != result[3] or kernel[0] > _MOST_OUTPUTS else rows


def _in_blocks(
    graph: Graph,
    conv: onnx.NodeProto,
    source: onnx.NodeProto,
    parameters: tuple[onnx.NodeProto, onnx.NodeProto | None],
    quantize: onnx.NodeProto,
    rows: _Rows,
) -> list[onnx.NodeProto]:
    """All nodes from the levels before the convolution to the levels after it."""
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        nodes.append(graph.node(kind, *inputs, to=to, **attributes))
        return str(nodes[-1].output[0])

    weight, bias = parameters
    outputs, _, lines, _ = _known(graph, weight.input[0])
    height, out_height = _known(graph, conv.input[0])[2], _known(graph, conv.output[0])[2]
    top, _, bottom, _ = attribute(conv, "pads", [0, 0, 0, 0])

    x = add("Pad", source.input[0], graph.integers(rows.pads[0], rows.behind), source.input[2], graph.integers(3))
    # Through channels-last, the layout of onnxruntime's kernels: its own Transposes cancel these.
    x = add("Transpose", x, perm=[0, 2, 3, 1])
    x = add("Reshape", x, graph.integers(0, height, rows.blocks, rows.block * rows.channels))
    x = add("Transpose", x, perm=[0, 3, 1, 2])
    inputs = [add("DequantizeLinear", x, *source.input[1:])]
    inputs.append(add("DequantizeLinear", *_weight_in_blocks(add, graph, weight, rows), axis=0))
    if bias is not None:
        inputs.append(add("DequantizeLinear", *(_repeated(add, name, rows.together) for name in bias.input), axis=0))
    strides = [attribute(conv, "strides", [1, 1])[0], 1]
    y = add("Conv", *inputs, kernel_shape=[lines, rows.reach], strides=strides, pads=[top, 0, bottom, 0])
    if rows.together == 1:
        add("QuantizeLinear", y, *quantize.input[1:], to=quantize.output[0])
        return nodes
    y = add("QuantizeLinear", y, *quantize.input[1:])
    y = add("Transpose", y, perm=[0, 2, 3, 1])
    y = add("Reshape", y, graph.integers(0, out_height, rows.positions * rows.together, outputs))
    if rows.outputs < rows.positions * rows.together:
        y = add("Slice", y, graph.integers(0), graph.integers(rows.outputs), graph.integers(2))
    add("Transpose", y, perm=[0, 3, 1, 2], to=quantize.output[0])
    return nodes


def _weight_in_blocks(add: _Add, graph: Graph, weight: onnx.NodeProto, rows: _Rows) -> list[str]:
    """Levels (together * outputs, block * channels, lines, reach), steps and zero points."""
    outputs, channels, lines, columns = _known(graph, weight.input[0])
    length, copies = rows.reach * rows.block, rows.together
    # Each copy's row is one stride longer than the slice, so each copy starts one stride further to the right.
    longer = length + rows.stride if copies > 1 else length
    w = weight.input[0]
    if longer > columns:
        w = add("Pad", w, graph.integers(0, longer - columns), "", graph.integers(3))
    if copies > 1:
        w = add("Concat", *[w] * copies, axis=3)
        w = add("Slice", w, graph.integers(0), graph.integers(copies * length), graph.integers(3))
    w = add("Reshape", w, graph.integers(outputs, channels, lines, copies, rows.reach, rows.block))
    w = add("Transpose", w, perm=[3, 0, 5, 1, 2, 4])
    w = add("Reshape", w, graph.integers(copies * outputs, rows.block * channels, lines, rows.reach))
    return [w, *(_repeated(add, name, copies) for name in weight.input[1:])]


def _repeated(add: _Add, name: str, times: int) -> str:
    return name if times == 1 else add("Concat", *[name] * times, axis=0)


def _known(graph: Graph, name: str) -> tuple[int, ...]:
    """A shape that `_rows` has checked, with 0 for the batch axis."""
    return tuple(size or 0 for size in graph.shape(name) or ())
