"""An ONNX graph that passes search and rewrite. Depends on ONNX; does not know the passes.

A name keeps its values and its shape as long as it exists: a pass changes the nodes that compute it, never its
meaning.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Graph:
    """Nodes in order, with the producer and the readers of each name. Changes reach the model only in `save`."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._nodes: list[onnx.NodeProto] = list(proto.graph.node)
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._outputs = {value.name for value in proto.graph.output}
        self._shapes = _shapes(proto)
        self._same: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._filled: dict[tuple[int, float], onnx.NodeProto] = {}
        self._made = 0
        self._look()

    def each(self, kind: str) -> Iterator[onnx.NodeProto]:
        """The nodes of this kind, without those that a pass has replaced meanwhile."""
        for node in [node for node in self._nodes if node.op_type == kind]:
            if any(self._makers.get(name) is node for name in node.output):
                yield node

    def maker(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node that computes `name`, if it is of this kind."""
        node = self._makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def only_reader(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node of this kind that reads `name` as data, if it is the only reader and `name` is no graph output."""
        readers = self._readers[name]
        if name in self._outputs or len(readers) != 1:
            return None
        (node,) = readers
        return node if node.op_type == kind and node.input[0] == name else None

    def array(self, name: str) -> np.ndarray | None:
        """The values of a constant, or None."""
        tensor = self._tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The shape of a tensor; None: not known; an axis None: depends on the batch."""
        return tuple(self._tensors[name].dims) if name in self._tensors else self._shapes.get(name)

    def constant(self, values: np.ndarray) -> str:
        """The name of a constant with these values; equal constants are shared."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._same:
            self._same[key] = self.name()
            self._tensors[self._same[key]] = numpy_helper.from_array(values, self._same[key])
        return self._same[key]

    def integers(self, *values: int) -> str:
        """The name of an int64 constant, for a shape, pads or axes."""
        return self.constant(np.array(values, np.int64))

    def filled(self, size: int, value: float) -> str:
        """The name of a vector of `size` equal values, computed by a node at the start."""
        key = (size, value)
        if key not in self._filled:
            tensor = helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [value])
            self._filled[key] = self.node("ConstantOfShape", self.integers(size), value=tensor)
        return str(self._filled[key].output[0])

    def node(self, kind: str, *inputs: str, to: str | Sequence[str] = "", **attributes: Any) -> onnx.NodeProto:
        """A node for `replace`; `to`: the name or names that it computes, by default a new one."""
        return helper.make_node(kind, inputs, [to or self.name()] if isinstance(to, str) else to, **attributes)

    def replace(self, old: onnx.NodeProto, new: Iterable[onnx.NodeProto]) -> None:
        """Put `new`, in this order, in place of `old` and other producers of the same names; remove unread nodes."""
        put = list(new)
        again = {name for node in put for name in node.output}
        at = next(i for i, node in enumerate(self._nodes) if node is old)
        before, after = (
            [n for n in part if not again & set(n.output)] for part in (self._nodes[:at], self._nodes[at + 1 :])
        )
        self._nodes = [*before, *put, *after]
        self._look()

    def name(self) -> str:
        """A new unused name."""
        self._made += 1
        return f"pass.{self._made}"

    def save(self) -> None:
        """Write the nodes into the model, without constants that no node reads."""
        graph = self._proto.graph
        self._nodes = [*self._filled.values(), *self._nodes]
        self._look()
        tensors = [tensor for name, tensor in self._tensors.items() if self._readers[name]]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(tensors)

    def _look(self) -> None:
        wanted = set(self._outputs)
        kept: list[onnx.NodeProto] = []
        for node in reversed(self._nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted |= set(node.input)
        self._nodes = kept[::-1]
        self._makers = {name: node for node in self._nodes for name in node.output}
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self._nodes:
            for name in node.input:
                self._readers[name].append(node)


def attribute(node: onnx.NodeProto, name: str, otherwise: Any = None) -> Any:
    """The value of an attribute, or `otherwise`."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), otherwise)


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in [*inferred.input, *inferred.value_info, *inferred.output]
        if value.type.tensor_type.HasField("shape")
    }
