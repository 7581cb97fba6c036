"""Compute linear layers on tokens as products of two matrices, with quantized results. Depends on ONNX.

onnxruntime has an int8 kernel with bias and output grid for Gemm, which needs matrices. For a tensor with one more
axis, such as the tokens of an example, it multiplies the integers, converts the sums to floats, and adds a float bias.
"""

from itertools import pairwise

import onnx

from fedq.quant.onnx_passes.graph import Graph, attribute

_MOVES = ("Reshape", "Transpose")


def quantize_before_split(graph: Graph) -> None:
    """Quantize a tensor before a Split if all its parts have the same grid: fewer bytes to split and to transpose.

    The kernel of the product before the Split can then include the grid; it cannot do so across a Split.
    """
    for split in graph.each("Split"):
        ways = [_way_to_grid(graph, name) for name in split.output]
        grids = {tuple(way[-1].input[1:]) for way in ways if way}
        if len(grids) != 1 or not all(ways):
            continue
        whole = graph.node("QuantizeLinear", split.input[0], *grids.pop())
        parts = [way[0].output[0] if len(way) == 1 else graph.name() for way in ways]
        again = graph.node("Split", whole.output[0], *split.input[1:], to=parts)
        again.attribute.extend(split.attribute)
        nodes = [whole, again]
        for part, way in zip(parts, ways, strict=True):
            for move, after in pairwise(way):
                to = after.output[0] if after is way[-1] else ""
                nodes.append(graph.node(move.op_type, part, *move.input[1:], to=to))
                nodes[-1].attribute.extend(move.attribute)
                part = nodes[-1].output[0]
        graph.replace(split, nodes)


def _way_to_grid(graph: Graph, name: str) -> list[onnx.NodeProto]:
    """The nodes that move values from `name` to one QuantizeLinear (the last); empty if there is another use."""
    way: list[onnx.NodeProto] = []
    while (quantize := graph.only_reader(name, "QuantizeLinear")) is None:
        move = next((node for kind in _MOVES if (node := graph.only_reader(name, kind)) is not None), None)
        if move is None or any(graph.array(shape) is None for shape in move.input[1:]):
            return []
        way.append(move)
        name = move.output[0]
    return [*way, quantize] if len(quantize.input) == 3 and graph.shape(quantize.input[1]) == () else []


def multiply_flat(graph: Graph) -> None:
    """(n, tokens, width) -> (n * tokens, width) before a linear layer and back after it, on levels if possible."""
    flat: dict[str, str] = {}  # levels -> the same levels as a matrix
    for product in graph.each("MatMul"):
        source = graph.maker(product.input[0], "DequantizeLinear")
        transpose = graph.maker(product.input[1], "Transpose")
        shape, add = graph.shape(product.input[0]), graph.only_reader(product.output[0], "Add")
        bias = None if add is None else _constant_shape(graph, add.input[1])
        if source is None or transpose is None or shape is None or len(shape) < 3 or add is None or bias is None:
            continue
        weight = _constant_shape(graph, transpose.input[0])
        if weight is None or len(weight) != 2 or list(attribute(transpose, "perm", [1, 0])) != [1, 0]:
            continue
        if None in shape[1:] or bias != weight[:1] or graph.shape(source.input[1]) != ():
            continue
        levels = source.input[0]
        nodes: list[onnx.NodeProto] = []
        if levels not in flat:
            nodes.append(graph.node("Reshape", levels, graph.integers(-1, weight[1])))
        matrix = graph.node("DequantizeLinear", flat.get(levels) or nodes[-1].output[0], *source.input[1:])
        gemm = graph.node("Gemm", matrix.output[0], transpose.input[0], add.input[1], transB=1)
        back = graph.integers(-1, *(size or 0 for size in shape[1:-1]), weight[0])
        quantize = graph.only_reader(add.output[0], "QuantizeLinear")
        nodes += [matrix, gemm]
        if quantize is None:
            graph.replace(add, [*nodes, graph.node("Reshape", gemm.output[0], back, to=add.output[0])])
        else:
            result = graph.node("QuantizeLinear", gemm.output[0], *quantize.input[1:])
            flat[quantize.output[0]] = result.output[0]
            nodes += [result, graph.node("Reshape", result.output[0], back, to=quantize.output[0])]
            graph.replace(quantize, nodes)


def _constant_shape(graph: Graph, name: str) -> tuple[int, ...] | None:
    """The shape of the constant that is dequantized there; None if it is no constant."""
    node = graph.maker(name, "DequantizeLinear")
    levels = None if node is None else graph.array(node.input[0])
    return None if levels is None else levels.shape
