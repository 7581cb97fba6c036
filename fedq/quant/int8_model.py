"""Run an int8 ONNX model and report which kernels ran. Depends on numpy, ONNX and onnxruntime; not on torch."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

# Operators that multiply matrices, in ONNX and in onnxruntime's fused operators.
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "Attention")
FLOAT = "float"  # prefix of the name of a float product in a file that fedq wrote
_DTYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}  # of inputs that are token ids
_PROVIDERS = ["CPUExecutionProvider"]
_BATCH = 1024  # examples per call: bounds the memory, at no cost in speed


class ExportError(RuntimeError):
    """The model cannot be exported as an int8 model; nothing was written."""


class Int8Model:
    """An ONNX model file as a function of arrays: float32 (n, ...), or int64 token ids, to float32 (n, ...).

    `int8_ops` and `float_ops` (operator -> count) describe the graph that onnxruntime runs after its own
    optimisation for this processor. An operator is int8 if its data input is; QuantizeLinear and
    DequantizeLinear read or write floats and count as float. Arithmetic on shapes is in neither.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such model file; a finished run writes model.onnx")
        self._path, self._threads = os.fspath(path), threads
        self._session, ran = self._optimised()
        self._input = self._session.get_inputs()[0]
        self.int8_ops, self.float_ops = _count(ran)

    @cached_property
    def float_products(self) -> list[str]:
        """Name and operator of each matrix product that onnxruntime would compute on floats.

        A fused node contains the name of the product in its own name. Only nodes in onnxruntime's NCHWc layout do not,
        so this layout is switched off here.
        """
        _, ran = self._optimised(without=["NchwcTransformer"])
        return [f"{node.name} ({node.op_type})" for node in float_products(ran)]

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs (float32) for inputs of shape (n, *input_shape), computed in batches."""
        shape = tuple(self._input.shape[1:])
        if inputs.shape[1:] != shape or inputs.ndim != 1 + len(shape):
            raise ValueError(f"inputs have shape {inputs.shape}: the model needs (n, {', '.join(map(str, shape))})")
        inputs = self._as_input(inputs)
        if not len(inputs):  # some kernels fail on an empty batch; an example of zeros gives the outputs' shape
            return self(np.zeros((1, *shape), inputs.dtype))[:0]
        starts = range(0, len(inputs), _BATCH)
        return np.concatenate([self._session.run(None, {self._input.name: inputs[i : i + _BATCH]})[0] for i in starts])

    def profile(self, inputs: np.ndarray, *, calls: int = 10) -> list[tuple[str, float]]:
        """(operator, its share of the kernels' time) over some calls on `inputs`, the slowest first.

        Measured by onnxruntime's profiler in a separate session. The profiler slows each kernel, short ones most.
        """
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            options = self._options()
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
            session = onnxruntime.InferenceSession(self._path, options, providers=_PROVIDERS)
            feed = {self._input.name: self._as_input(inputs)}
            for _ in range(calls):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        spent: Counter[str] = Counter()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                spent[event["args"]["op_name"]] += event["dur"]
        total = sum(spent.values()) or 1
        return [(kind, taken / total) for kind, taken in spent.most_common()]

    def _as_input(self, inputs: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(inputs, dtype=_DTYPES.get(self._input.type, np.float32))

    def _optimised(self, *, without: Sequence[str] = ()) -> tuple[Any, "onnx.ModelProto"]:
        """A session and the graph that it runs; `without`: names of onnxruntime optimizers to switch off."""
        import onnx
        import onnxruntime

        options = self._options()
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            session = onnxruntime.InferenceSession(
                self._path, options, providers=_PROVIDERS, disabled_optimizers=list(without)
            )
            return session, onnx.load(options.optimized_model_filepath)

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # no warning that the optimised file is for this machine only
        return options


def float_products(model: "onnx.ModelProto") -> list["onnx.NodeProto"]:
    """Nodes that multiply float matrices."""
    types = _tensor_types(model)
    return [node for node in model.graph.node if is_product(node.op_type) and types[node.input[0]] in _floats()]


def is_product(op_type: str) -> bool:
    """Whether an operator multiplies matrices."""
    # Fused operators are FusedConv, FusedMatMul, NhwcFusedConv, MatMulNBits, ...
    return any(name in op_type for name in _PRODUCTS)


def _count(model: "onnx.ModelProto") -> tuple[dict[str, int], dict[str, int]]:
    """(int8 operators, float operators) -> count."""
    from onnx import TensorProto

    types = _tensor_types(model)
    int8: Counter[str] = Counter()
    floats: Counter[str] = Counter()
    for node in model.graph.node:
        data = types[node.input[0]] if node.input else None
        if node.op_type in ("Shape", "Size"):
            continue
        if node.op_type == "DequantizeLinear" or data in _floats():
            floats[node.op_type] += 1
        elif data in (TensorProto.INT8, TensorProto.UINT8):
            int8[node.op_type] += 1
    return dict(sorted(int8.items())), dict(sorted(floats.items()))


def _floats() -> tuple[int, ...]:
    from onnx import TensorProto

    return (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def _tensor_types(model: "onnx.ModelProto") -> dict[str, int]:
    """Element type by tensor name. ONNX cannot infer it for onnxruntime's own operators, so there are rules here."""
    from onnx import TensorProto

    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.value_info]}
    types[""] = TensorProto.UNDEFINED
    for node in graph.node:  # ONNX requires the order of computation
        out = _output_type(node, types)
        types |= dict.fromkeys(node.output, out)
    return types


def _output_type(node: "onnx.NodeProto", types: dict[str, int]) -> int:
    from onnx import TensorProto, helper

    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Constant":
        value = attributes.get("value")
        return int(TensorProto.INT64 if value is None else value.data_type)
    if node.op_type in ("Shape", "Size"):
        return int(TensorProto.INT64)
    if node.op_type == "Cast":
        return int(attributes["to"])
    if node.op_type == "QuantizeLinear":
        return types[node.input[2]] if len(node.input) > 2 else int(TensorProto.UINT8)
    if node.op_type == "QLinearConcat":  # scale and zero point of the output come first
        return types[node.input[1]]
    if node.op_type == "QGemm":  # float32 unless the output's zero point is given
        return types[node.input[8]] if len(node.input) > 8 else int(TensorProto.FLOAT)
    if node.op_type.startswith("Dequantize") or node.op_type.endswith("ToFloat"):
        return int(TensorProto.FLOAT)
    return types[node.input[0]] if node.input else int(TensorProto.FLOAT)
