"""Clean an exported ONNX graph, and find its float products. Depends on ONNX; not on torch."""

import ast
import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from fedq.quant.int8_model import FLOAT, ExportError, is_product
from fedq.quant.onnx_passes import speed_up
from fedq.quant.storage import pack_weights, shorten_names

# Operators that do not change values. onnxruntime moves a DequantizeLinear through them.
_MOVES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "MaxPool")


def clean(proto: onnx.ModelProto) -> None:
    """Remove everything but the graph from the file: stack traces, source paths, versions and needless zeros."""
    proto.producer_name, proto.producer_version, proto.doc_string = "fedq", "", ""
    proto.graph.name, proto.graph.doc_string = "fedq", ""
    del proto.metadata_props[:], proto.graph.metadata_props[:], proto.graph.value_info[:]
    graph = proto.graph
    holders: list[Any] = [*graph.node, *graph.input, *graph.output, *graph.initializer]
    for holder in holders:
        holder.doc_string = ""
        del holder.metadata_props[:]
    # Zero is ONNX's default zero point. It can be left out for a bias; without the weight's zero point, onnxruntime
    # fuses nothing.
    integers = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == TensorProto.INT32}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in integers:
            del node.input[2:]
    _drop_defaults(proto)
    _share_constants(proto.graph)
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    _derive_bias_steps(proto.graph)
    speed_up(proto)
    shorten_names(proto.graph)
    pack_weights(proto)


def _drop_defaults(proto: onnx.ModelProto) -> None:
    """Remove attributes that have their default value."""
    (own,) = [entry for entry in proto.opset_import if entry.domain == ""]
    for node in (node for node in proto.graph.node if not node.domain):
        defaults = {
            (attribute.name, attribute.default_value.SerializeToString())
            for attribute in onnx.defs.get_schema(node.op_type, own.version).attributes.values()
        }
        kept = [entry for entry in node.attribute if (entry.name, entry.SerializeToString()) not in defaults]
        del node.attribute[:]
        node.attribute.extend(kept)


def _share_constants(graph: onnx.GraphProto) -> None:
    """Keep one copy of equal constants: zero points of layers of one width, and grids that two layers read."""
    first: dict[bytes, str] = {}
    stands_for: dict[str, str] = {}
    for tensor in graph.initializer:
        nameless = onnx.TensorProto()
        nameless.CopyFrom(tensor)
        nameless.name = ""
        stands_for[tensor.name] = first.setdefault(nameless.SerializeToString(deterministic=True), tensor.name)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = stands_for.get(name, name)


def _derive_bias_steps(graph: onnx.GraphProto) -> None:
    """Compute a bias' steps from the weight's and the input's steps at load time, so that they take no bytes."""
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    integers = {t.name for t in graph.initializer if t.data_type == TensorProto.INT32}
    steps = [(name, array) for name, array in arrays.items() if array.ndim == 1]
    factors = [(name, array) for name, array in arrays.items() if array.ndim == 0]
    made: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in integers or node.input[1] not in arrays:
            continue
        name, wanted = node.input[1], arrays[node.input[1]]
        for weight, step in steps:
            factor = next(
                (n for n, f in factors if step.shape == wanted.shape and np.array_equal(step * f, wanted)), ""
            )
            if factor and weight != name and name not in made:
                made[name] = onnx.helper.make_node("Mul", [weight, factor], [f"{name}.derived"])
        if name in made:
            node.input[1] = made[name].output[0]
    kept = [tensor for tensor in graph.initializer if tensor.name not in made]
    nodes = [*made.values(), *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def drop_idle_relus(graph: onnx.GraphProto) -> None:
    """Remove a Relu after a grid without negative levels: it has no effect, but separates two int8 kernels."""
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


def float_products_by_scope(proto: onnx.ModelProto) -> list[tuple[onnx.NodeProto, list[str]]]:
    """Products that have an operand of floats, each with the names of the modules in which it was called.

    For a graph as torch's exporter made it: `clean` removes the information about modules.
    """
    made_by = {name: node for node in proto.graph.node for name in node.output}

    def integer(name: str) -> bool:
        node = made_by.get(name)
        while node is not None and node.op_type in _MOVES:
            node = made_by.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    return [
        (node, _scopes(node))
        for node in proto.graph.node
        if is_product(node.op_type) and not all(integer(name) for name in node.input[:2])
    ]


def name_float_products(proto: onnx.ModelProto, skip: Sequence[str]) -> set[str]:
    """Rename all float products and return the names. ExportError for a float product outside the modules in `skip`."""
    names: set[str] = set()
    for node, scopes in float_products_by_scope(proto):
        if not any(fnmatch.fnmatchcase(scope, pattern) for scope in scopes for pattern in skip):
            inside = scopes[-1] if scopes else ""
            raise ExportError(
                f"{inside or 'the model'}: a {node.op_type} would be computed on float32{_line(node)}; quantize its "
                f"operands with a layer that fedq supports, or name the module in quant.skip={[inside or '*']}"
            )
        node.name = f"{FLOAT}{len(names)}"
        names.add(node.name)
    return names


def _scopes(node: onnx.NodeProto) -> list[str]:
    recorded = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
    scopes = ast.literal_eval(recorded)
    return [str(scope) for scope in scopes[:-1] if scope]  # the last scope is the operation itself


def _line(node: onnx.NodeProto) -> str:
    """The position in the user's code, such as `: model.py, line 12`."""
    trace = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.stack_trace", "")
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    own = [line for line in lines if "/torch/" not in line and "/fedq/quant/" not in line]
    return f" ({own[-1]})" if own else ""
