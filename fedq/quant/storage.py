"""Store the integer weights of an ONNX graph in as few bytes as possible. Depends on ONNX; not on torch.

Levels of 4 and 2 bits are packed and followed by a Cast to int8. A sparse weight is stored as its nonzero levels and
the gaps between them, followed by operators that rebuild it. All these operators read only constants, so onnxruntime
computes them once, when it loads the file, and fuses the same int8 kernels as for a plain weight.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fedq.quant.int8_model import FLOAT

LEAST_VALUES = 256  # values; smaller weights are not worth the operators
_PACKED = {4: (TensorProto.INT4, 21), 2: (TensorProto.INT2, 25)}  # bits -> type, first opset with this type
_LARGEST = {8: 127, 4: 7, 2: 1}
_IR_VERSIONS = {21: 10, 25: 13}
_GAP_BITS = 8
_LARGEST_GAP = 2**_GAP_BITS - 1


@dataclass(frozen=True)
class StoredWeight:
    """The stored form of one weight."""

    bits: int  # bits per level
    kept: int  # stored levels: all, or the nonzero ones and fillers of long gaps
    sparse: bool

    @property
    def bytes(self) -> int:
        """Bytes of levels and gaps."""
        return -(-self.kept * self.bits // 8) + (self.kept if self.sparse else 0)


def smallest_form(levels: np.ndarray) -> StoredWeight:
    """The form with the fewest bytes for int8 `levels` of any shape."""
    largest = int(np.abs(levels.astype(np.int16)).max(initial=0))
    bits = min(bits for bits, top in _LARGEST.items() if largest <= top)
    dense = StoredWeight(bits, levels.size, sparse=False)
    sparse = StoredWeight(bits, len(_kept(levels.ravel())[0]), sparse=True)
    return sparse if sparse.bytes < dense.bytes else dense


def pack_weights(proto: onnx.ModelProto) -> None:
    """Replace every int8 weight of the graph by its smallest form, in place."""
    opset = 0
    before: list[onnx.NodeProto] = []
    kept: list[onnx.TensorProto] = []
    for tensor in proto.graph.initializer:
        form = None
        if tensor.data_type == TensorProto.INT8:
            levels = numpy_helper.to_array(tensor)
            form = smallest_form(levels) if levels.size >= LEAST_VALUES else None
        if form is None or (form.bits == 8 and not form.sparse):
            kept.append(tensor)
            continue
        tensors, nodes = _sparse(tensor.name, levels, form) if form.sparse else _dense(tensor.name, levels, form)
        kept += tensors
        before += nodes
        opset = max(opset, _PACKED[form.bits][1] if form.bits in _PACKED else 0)
    nodes = [*before, *proto.graph.node]
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.initializer.extend(kept)
    proto.graph.node.extend(nodes)
    _raise_opset(proto, opset)


def _dense(name: str, levels: np.ndarray, form: StoredWeight) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    kind = _PACKED[form.bits][0]
    packed = helper.make_tensor(f"{name}.packed", kind, levels.shape, _packed(levels.ravel(), form.bits), raw=True)
    return [packed], [helper.make_node("Cast", [packed.name], [name], to=TensorProto.INT8)]


def _sparse(name: str, levels: np.ndarray, form: StoredWeight) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """Levels and gaps -> positions by a running sum -> scattered into zeros."""
    flat = levels.ravel()
    places, gaps = _kept(flat)
    values = flat[places]
    nodes: list[onnx.NodeProto] = []
    if form.bits in _PACKED:
        kind = _PACKED[form.bits][0]
        stored = helper.make_tensor(f"{name}.packed", kind, values.shape, _packed(values, form.bits), raw=True)
        nodes.append(helper.make_node("Cast", [stored.name], [f"{name}.kept"], to=TensorProto.INT8))
    else:
        stored = numpy_helper.from_array(values, f"{name}.kept")
    constants = {
        "gaps": gaps.astype(np.uint8),
        "first": np.int64(0),
        "one": np.array([1], np.int64),
        "size": np.array([flat.size], np.int64),
        "shape": np.array(levels.shape, np.int64),
    }
    at = {key: f"{name}.{key}" for key in [*constants, "wide", "ends", "places", "zeros", "flat", "kept"]}
    nodes += [
        helper.make_node("Cast", [at["gaps"]], [at["wide"]], to=TensorProto.INT64),
        helper.make_node("CumSum", [at["wide"], at["first"]], [at["ends"]]),
        helper.make_node("Sub", [at["ends"], at["one"]], [at["places"]]),
        helper.make_node(
            "ConstantOfShape", [at["size"]], [at["zeros"]], value=helper.make_tensor("zero", TensorProto.INT8, [1], [0])
        ),
        helper.make_node("ScatterElements", [at["zeros"], at["places"], at["kept"]], [at["flat"]]),
        helper.make_node("Reshape", [at["flat"], at["shape"]], [name]),
    ]
    return [stored, *(numpy_helper.from_array(np.asarray(v), at[key]) for key, v in constants.items())], nodes


def _kept(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions, gaps) of nonzero levels and of fillers that keep every gap at 255 or below; a gap is at least 1."""
    places = np.flatnonzero(flat)
    gaps = np.diff(places, prepend=-1)
    fillers = (gaps - 1) // _LARGEST_GAP
    if fillers.any():
        starts = np.concatenate([[-1], places[:-1]])
        extra = [
            start + _LARGEST_GAP * np.arange(1, count + 1)
            for start, count in zip(starts[fillers > 0], fillers[fillers > 0], strict=True)
        ]
        places = np.sort(np.concatenate([places, *extra]))
        gaps = np.diff(places, prepend=-1)
    return places, gaps


def _packed(levels: np.ndarray, bits: int) -> bytes:
    """Pack levels, the first value in the lowest bits, as ONNX packs INT4 and INT2."""
    per_byte = 8 // bits
    padded = np.zeros(-(-levels.size // per_byte) * per_byte, np.uint8)
    padded[: levels.size] = levels.astype(np.uint8) & (2**bits - 1)
    columns = padded.reshape(-1, per_byte)
    packed = np.zeros(len(columns), np.uint8)
    for number in range(per_byte):
        packed |= columns[:, number] << np.uint8(number * bits)
    return packed.tobytes()


def _raise_opset(proto: onnx.ModelProto, opset: int) -> None:
    (own,) = [entry for entry in proto.opset_import if entry.domain == ""]
    if opset > own.version:
        own.version = opset
        proto.ir_version = max(proto.ir_version, _IR_VERSIONS[opset])


def shorten_names(graph: onnx.GraphProto) -> None:
    """Shorten all names but those of inputs and outputs: in a small model, long names are a tenth of the file."""
    keep = {value.name for value in [*graph.input, *graph.output]} | {""}
    new: dict[str, str] = {name: name for name in keep}

    def short(name: str) -> str:
        return new.setdefault(name, f"v{len(new):x}")

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    holders: list[Any] = list(graph.node)
    for number, node in enumerate(holders):
        # The export finds float products by their names in the graph that onnxruntime optimised.
        node.name = node.name if node.name.startswith(FLOAT) else f"n{number:x}"
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = short(name)
