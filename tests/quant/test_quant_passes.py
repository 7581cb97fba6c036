"""What passes do to the delivered graph: another one, with the same outputs; and what they leave alone."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from quant_models import Residual, tanh_cnn
from torch import Tensor, nn
from torch.nn import functional

from fedq import models
from fedq.quant import Int8Model, export_onnx, onnx_graph, quantize
from fedq.quant.onnx_passes import speed_up


@dataclass(frozen=True)
class Files:
    """One model without passes and with them."""

    plain: Path
    fast: Path

    def ops(self) -> Counter[str]:
        """Of the second one, as stored."""
        return Counter(node.op_type for node in onnx.load(self.fast).graph.node)

    def outputs(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return Int8Model(self.plain)(inputs), Int8Model(self.fast)(inputs)


Exported = Callable[..., Files]


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exported:
    def export(model: nn.Module, shape: tuple[int, ...], **options) -> Files:
        files = Files(tmp_path / "plain.onnx", tmp_path / "fast.onnx")
        quantize(model, **options)
        model.eval()
        with monkeypatch.context() as patch:
            patch.setattr(onnx_graph, "speed_up", lambda proto: (written(proto, files.plain), speed_up(proto)))
            export_onnx(model, shape, files.fast)
        return files

    def written(proto: onnx.ModelProto, path: Path) -> None:
        """As `clean` ends without passes: capturing a model takes half a second, and is done once for both."""
        plain = onnx.ModelProto()
        plain.CopyFrom(proto)
        onnx_graph.shorten_names(plain.graph)
        onnx_graph.pack_weights(plain)
        path.write_bytes(plain.SerializeToString(deterministic=True))

    return export


def made_up(batch: int, *shape: int) -> np.ndarray:
    """Values of which some are beyond a grid of [-4, 4]."""
    return 2 * np.random.default_rng(batch).standard_normal((batch, *shape), dtype=np.float32)


def with_random_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return model


def convolution(channels: int, outputs: int, kernel: int | tuple[int, int], **options) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, outputs, kernel, **options), nn.ReLU(), nn.Conv2d(outputs, 8, 1))


# Whole models


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "cnn_wide", "resnet8_gn", "mlp"])
def test_a_model_s_outputs_are_the_same_bits_with_passes(name: str, exported: Exported):
    torch.manual_seed(0)
    files = exported(with_random_norms(getattr(models, name)((1, 28, 28), 10)), (1, 28, 28))
    for batch in (1, 70):
        plain, fast = files.outputs(made_up(batch, 1, 28, 28))
        assert np.array_equal(plain, fast)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"), [("cnn", 1400), ("cnn_wide", 1400), ("resnet8_gn", 1800), ("transformer", 0)]
)
def test_passes_add_nodes_and_no_weights(name: str, more: int, exported: Exported):
    files = exported(getattr(models, name)((1, 28, 28), 10), (1, 28, 28))
    assert files.fast.stat().st_size <= files.plain.stat().st_size + more
    plain, fast = (
        sorted(
            numpy_helper.to_array(tensor).tobytes()
            for tensor in onnx.load(path).graph.initializer
            if tensor.data_type in (TensorProto.INT8, TensorProto.INT32)
        )
        for path in (files.plain, files.fast)
    )
    assert plain == fast


@pytest.mark.integration
def test_the_file_needs_no_operators_but_the_standard_s(exported: Exported):
    files = exported(tanh_cnn(), (1, 28, 28))
    assert {(entry.domain, entry.version) for entry in onnx.load(files.fast).opset_import} == {("", 20)}


# Tanh


@pytest.mark.integration
def test_a_tanh_between_grids_becomes_a_table_and_pools_first(exported: Exported):
    files = exported(tanh_cnn(), (1, 28, 28))
    assert (files.ops()["Tanh"], files.ops()["Sigmoid"]) == (1, 2)  # the last one reads floats
    kernels = Int8Model(files.fast).int8_ops
    assert (kernels["QLinearSigmoid"], kernels["NhwcMaxPool"]) == (2, 2)
    assert Int8Model(files.fast).float_ops.keys() == {"QuantizeLinear", "Tanh"}


@pytest.mark.slow
@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, stride=2, padding=1), nn.MaxPool2d(2, dilation=2, ceil_mode=True)])
def test_any_max_pooling_may_come_first(pool: nn.Module, exported: Exported):
    files = exported(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Tanh(), pool, nn.Conv2d(8, 4, 1)), (4, 13, 13))
    kinds = [node.op_type for node in onnx.load(files.fast).graph.node]
    assert kinds.index("MaxPool") < kinds.index("Sigmoid")
    plain, fast = files.outputs(made_up(50, 4, 13, 13))
    assert np.array_equal(plain, fast)


class TanhReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.second(functional.max_pool2d(h, 2)).mean((2, 3)) + h.mean((2, 3))


@pytest.mark.integration
def test_a_tanh_with_two_readers_stays(exported: Exported):
    files = exported(TanhReadTwice(), (4, 9, 9))
    assert (files.ops()["Tanh"], files.ops()["Sigmoid"]) == (1, 0)
    kinds = [node.op_type for node in onnx.load(files.fast).graph.node]
    assert kinds.index("Tanh") < kinds.index("MaxPool")


def tanh_graph(step: float, out_step: float = 1 / 127) -> onnx.ModelProto:
    """Levels -> tanh -> levels."""
    constants = {"step": np.float32(step), "zero": np.uint8(128), "out_step": np.float32(out_step)}
    nodes = [
        helper.make_node("DequantizeLinear", ["input", "step", "zero"], ["x"]),
        helper.make_node("Tanh", ["x"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "out_step", "zero"], ["output"]),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.UINT8, ["n"])] for name in ("input", "output")]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tanh", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def levels_of(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": np.arange(256, dtype=np.uint8)})[0]


@pytest.mark.parametrize("limit", [0.7, 2.0, 4.0, 8.0, 30.0])
def test_the_table_has_all_levels_of_the_tanh(limit: float):
    model = tanh_graph(limit / 127)
    expected = levels_of(model)
    speed_up(model)
    assert "Sigmoid" in {node.op_type for node in model.graph.node}
    assert np.array_equal(levels_of(model), expected)


@pytest.mark.parametrize(
    ("step", "out_step"),
    [(float(np.arctanh(0.5 / 127)), 1 / 127), (4 / 127, 1 / 100.4), (4 / 127, 1 / 200)],
    ids=["on the border of two levels", "one is not a level", "zero point below 0"],
)
def test_a_tanh_whose_levels_are_not_certain_stays(step: float, out_step: float):
    model = tanh_graph(step, out_step)
    speed_up(model)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "Tanh", "QuantizeLinear"]


# Convolutions of few channels


@pytest.mark.integration
@pytest.mark.parametrize(
    ("channels", "kernel", "options", "side"),
    [
        (1, 3, {}, 13),  # 11 outputs in a row, of 12 that are computed
        (2, 3, {"stride": 2}, 12),
        pytest.param(1, 3, {"padding": 1}, 28, marks=pytest.mark.slow),
        pytest.param(1, 8, {"stride": 2, "padding": 3}, 28, marks=pytest.mark.slow),
        pytest.param(1, 3, {"stride": (1, 2), "bias": False}, 15, marks=pytest.mark.slow),
        pytest.param(1, 5, {"stride": 4, "padding": 2}, 28, marks=pytest.mark.slow),
        pytest.param(2, (3, 2), {"padding": (0, 1)}, 10, marks=pytest.mark.slow),
        pytest.param(3, 3, {"padding": "same"}, 12, marks=pytest.mark.slow),
        pytest.param(3, (1, 7), {"stride": 3}, 25, marks=pytest.mark.slow),
    ],
)
def test_few_channels_are_convolved_in_blocks(channels, kernel, options, side, exported: Exported):
    files = exported(convolution(channels, 16, kernel, **options), (channels, side, side))
    assert files.ops()["Pad"] >= 1
    blocks = next(node for node in onnx.load(files.fast).graph.node if node.op_type == "Conv")
    (strides,) = (helper.get_attribute_value(a) for a in blocks.attribute if a.name == "strides")
    assert strides[1] == 1
    assert Int8Model(files.fast).int8_ops["QLinearConv"] == 2
    assert "Conv" not in Int8Model(files.fast).float_ops
    for batch in (0, 1, 33):
        plain, fast = files.outputs(made_up(batch, channels, side, side))
        assert np.array_equal(plain, fast)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"weights": 4}, {"weights": 2}])
def test_packed_weights_are_convolved_in_blocks_too(options, exported: Exported):
    files = exported(convolution(1, 32, 5), (1, 16, 16), **options)
    plain, fast = files.outputs(made_up(20, 1, 16, 16))
    assert np.array_equal(plain, fast)
    assert files.ops()["Cast"] == 2
    assert Int8Model(files.fast).int8_ops["QLinearConv"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "options"),
    [
        (4, 16, 3, {}),
        (2, 16, 3, {"groups": 2}),
        (1, 16, 3, {"dilation": 2}),
        (1, 16, (3, 1), {}),
        (1, 129, 3, {}),
    ],
    ids=["four channels", "groups", "dilation", "one column", "many outputs"],
)
def test_other_convolutions_stay(channels, outputs, kernel, options, exported: Exported):
    files = exported(convolution(channels, outputs, kernel, **options), (channels, 12, 12))
    assert files.fast.read_bytes() == files.plain.read_bytes()


# GroupNorm


@pytest.mark.integration
def test_scale_and_shift_of_a_group_norm_are_one_operator(exported: Exported):
    files = exported(with_random_norms(Residual()), (1, 8, 8))
    assert files.ops()["BatchNormalization"] == 1
    plain, fast = files.outputs(made_up(100, 1, 8, 8))
    assert np.abs(plain - fast).max() <= 1e-6 * np.abs(plain).max()


def norm_graph(factors: np.ndarray, outputs: tuple[str, ...] = ("output",)) -> onnx.ModelProto:
    """A normalisation of two groups of two channels, a product and a sum."""
    constants = {
        "groups": np.array([0, 2, -1]),
        "ones": np.ones(2, np.float32),
        "none": np.zeros(2, np.float32),
        "back": np.array([0, 4, 3, 3]),
        "factors": factors,
        "terms": np.arange(4, dtype=np.float32).reshape(4, 1, 1),
    }
    nodes = [
        helper.make_node("Reshape", ["input", "groups"], ["x"]),
        helper.make_node("InstanceNormalization", ["x", "ones", "none"], ["y"]),
        helper.make_node("Reshape", ["y", "back"], ["z"]),
        helper.make_node("Mul", ["z", "factors"], ["scaled"]),
        helper.make_node("Add", ["scaled", "terms"], ["output"]),
    ]
    image = ["n", 4, 3, 3]
    ends = (
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, image) for name in outputs],
    )
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "norm", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


PER_CHANNEL = np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (norm_graph(PER_CHANNEL), 1),
        (norm_graph(PER_CHANNEL, ("output", "scaled")), 0),
        (norm_graph(np.ones((4, 3, 3), np.float32)), 0),
        (norm_graph(np.ones((3,), np.float32)), 0),
    ],
    ids=["per channel", "read twice", "per pixel", "per column"],
)
def test_only_what_is_scaled_per_channel_becomes_one_operator(model: onnx.ModelProto, found: int):
    speed_up(model)
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == found


# Tokens


@pytest.mark.integration
def test_linear_layers_on_tokens_are_products_of_matrices(exported: Exported):
    torch.manual_seed(0)
    files = exported(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24)), (5, 7, 16))
    assert Int8Model(files.plain).int8_ops["MatMulIntegerToFloat"] == 2
    kernels = Int8Model(files.fast).int8_ops
    assert kernels["QGemm"] == 2
    assert "MatMulIntegerToFloat" not in kernels
    for batch in (1, 30):
        plain, fast = files.outputs(made_up(batch, 5, 7, 16))
        assert fast.shape == (batch, 5, 7, 24)
        # The bias is added to the integers, not to the floats: a sum between two levels may go to the other one.
        assert np.abs(plain - fast).mean() <= 1e-5 * np.abs(plain).mean()


@pytest.mark.slow
def test_the_transformer_has_the_same_outputs_but_for_rounding(exported: Exported):
    torch.manual_seed(0)
    files = exported(models.transformer((1, 28, 28), 10), (1, 28, 28))
    kernels = Int8Model(files.fast)
    assert kernels.int8_ops["QGemm"] == 10
    assert kernels.int8_ops["Split"] == 2  # of levels
    plain, fast = files.outputs(made_up(64, 1, 28, 28))
    assert np.abs(plain - fast).mean() <= 0.01 * np.abs(plain - plain.mean(0)).mean()


def split_graph(steps: tuple[str, str]) -> onnx.ModelProto:
    """Halves of an input, transposed, each on its grid."""
    constants = {"first": np.float32(0.1), "other": np.float32(0.2), "zero": np.uint8(128)}
    nodes = [
        helper.make_node("Split", ["input"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Transpose", ["a"], ["at"], perm=[1, 0]),
        helper.make_node("QuantizeLinear", ["at", steps[0], "zero"], ["x"]),
        helper.make_node("QuantizeLinear", ["b", steps[1], "zero"], ["y"]),
    ]
    ends = (
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 8])],
        [
            helper.make_tensor_value_info(name, TensorProto.UINT8, shape)
            for name, shape in (("x", [4, "n"]), ("y", ["n", 4]))
        ],
    )
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "split", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_is_split_is_quantized_whole_where_all_parts_have_one_grid():
    model, x = split_graph(("first", "first")), made_up(6, 8)

    def run() -> list[np.ndarray]:
        onnx.checker.check_model(model, full_check=True)
        return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": x})

    expected = run()
    speed_up(model)
    assert [node.op_type for node in model.graph.node] == ["QuantizeLinear", "Split", "Transpose"]
    assert all(np.array_equal(a, b) for a, b in zip(run(), expected, strict=True))


def test_parts_on_two_grids_are_split_first():
    model = split_graph(("first", "other"))
    speed_up(model)
    assert model.graph.node[0].op_type == "Split"
