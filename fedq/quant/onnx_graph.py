"""Clean an exported ONNX graph, and say which of its products have int8 weights. Knows ONNX; not torch."""

from typing import Any

import onnx
from onnx import TensorProto

from fedq.quant.int8_model import float_products


def clean(proto: onnx.ModelProto) -> None:
    """Leave nothing in the file but the graph: no stack traces, source paths, versions or needless zeros."""
    proto.producer_name, proto.producer_version, proto.doc_string = "fedq", "", ""
    proto.graph.name, proto.graph.doc_string = "fedq", ""
    del proto.metadata_props[:], proto.graph.metadata_props[:], proto.graph.value_info[:]
    graph = proto.graph
    holders: list[Any] = [*graph.node, *graph.input, *graph.output, *graph.initializer]
    for holder in holders:
        holder.doc_string = ""
        del holder.metadata_props[:]
    _drop_idle_relus(proto.graph)
    # Zero is ONNX's default for a zero point. A bias may leave it out; without a weight's, onnxruntime
    # fuses nothing.
    integers = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == TensorProto.INT32}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in integers:
            del node.input[2:]
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _drop_idle_relus(graph: onnx.GraphProto) -> None:
    """Drop a Relu after a grid without negative levels: it does nothing, but would part two int8 kernels."""
    zeros = {t.name for t in graph.initializer if t.data_type == TensorProto.UINT8 and not any(t.raw_data)}
    never_negative = {
        node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[2] in zeros
    }
    outputs = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    stands_for: dict[str, str] = {}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = stands_for.get(name, name)
        if node.op_type == "Relu" and node.input[0] in never_negative and node.output[0] not in outputs:
            stands_for[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def products_without_int8_weights(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Products that the graph means to compute on floats: skipped layers, activations by activations."""
    made_by = {name: node for node in proto.graph.node for name in node.output}

    def has_int8_weights(node: onnx.NodeProto) -> bool:
        weights = made_by.get(node.input[1])
        while weights is not None and weights.op_type in ("Transpose", "Reshape"):
            weights = made_by.get(weights.input[0])
        return weights is not None and weights.op_type == "DequantizeLinear"

    return [node for node in float_products(proto) if not has_int8_weights(node)]
