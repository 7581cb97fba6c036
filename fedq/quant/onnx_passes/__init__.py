"""Rewrite an exported int8 graph so that onnxruntime runs it faster, with the same results. Depends on ONNX only.

Every pass looks for one pattern and leaves everything else unchanged. It uses only standard operators, so the file
runs wherever it ran before. Operators that a pass adds to weights read constants and are computed once, when the file
is loaded: the file holds each layer's own integers.
"""

import onnx

from fedq.quant.onnx_passes.blocks import convolve_blocks
from fedq.quant.onnx_passes.graph import Graph
from fedq.quant.onnx_passes.groups import scale_and_shift_at_once
from fedq.quant.onnx_passes.tanh import pool_before_tanh, tanh_as_sigmoid
from fedq.quant.onnx_passes.tokens import multiply_flat, quantize_before_split

PASSES = (
    pool_before_tanh,
    tanh_as_sigmoid,
    convolve_blocks,
    scale_and_shift_at_once,
    quantize_before_split,
    multiply_flat,
)


def speed_up(proto: onnx.ModelProto) -> None:
    """Apply all passes, in place."""
    graph = Graph(proto)
    for rewrite in PASSES:
        rewrite(graph)
    graph.save()
