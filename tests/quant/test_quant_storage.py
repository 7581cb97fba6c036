"""Weights in the file: the fewest bytes, and the same integers once onnxruntime has read them."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fedq.quant import Int8Model, export_onnx, quantize
from fedq.quant.storage import StoredWeight, pack_weights, smallest_form


def weights(largest: int, density: float, size: int = 4096, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    levels = rng.integers(1, largest + 1, size) * rng.choice([-1, 1], size)
    return (levels * (rng.random(size) < density)).astype(np.int8)


@pytest.mark.parametrize(
    ("levels", "stored"),
    [
        (np.full(1000, 63, np.int8), StoredWeight(8, 1000, sparse=False)),
        (np.full(1000, -7, np.int8), StoredWeight(4, 1000, sparse=False)),
        (np.full(1000, 1, np.int8), StoredWeight(2, 1000, sparse=False)),
        # 100 kept of 1,000, a byte each for level and gap: 200 bytes of 1,000.
        (np.tile([0, 0, 0, 0, 0, 0, 0, 0, 0, 63], 100).astype(np.int8), StoredWeight(8, 100, sparse=True)),
        # Ternary at 10 %: 25 + 100 bytes are less than 250.
        (np.tile([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 100).astype(np.int8), StoredWeight(2, 100, sparse=True)),
        # Every second one: 500 levels and 500 gaps are no fewer than 1,000 levels.
        (np.tile([0, 63], 500).astype(np.int8), StoredWeight(8, 1000, sparse=False)),
    ],
    ids=["int8", "int4", "ternary", "sparse", "sparse ternary", "half"],
)
def test_the_cheapest_form_is_chosen(levels, stored):
    assert smallest_form(levels) == stored


def test_a_gap_longer_than_a_byte_gets_fillers():
    levels = np.zeros(1000, np.int8)
    levels[[0, 999]] = 5  # 999 places apart: three fillers of 255
    assert smallest_form(levels).kept == 5


def read_back(levels: np.ndarray) -> tuple[np.ndarray, list[str], int]:
    """What onnxruntime has in its hands after loading, which operators are left, and the bytes of the file."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["wide", "x"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(levels.shape))],
        [numpy_helper.from_array(levels, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    pack_weights(proto)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.zeros(1, np.float32)})
    return got, [node.op_type for node in proto.graph.node], len(proto.SerializeToString())


@pytest.mark.parametrize("largest", [127, 63, 7, 1])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.003, 0.0])
@pytest.mark.parametrize("shape", [(64, 64), (7, 11, 3, 3)])
def test_onnxruntime_reads_the_same_integers(largest, density, shape):
    levels = weights(largest, density, int(np.prod(shape))).reshape(shape)
    got, _, size = read_back(levels)
    assert np.array_equal(got, levels)
    assert size <= smallest_form(levels).bytes + 700  # names, shapes and operators


def test_small_weights_stay_as_they_are():
    _, operators, _ = read_back(weights(1, 1.0, 100).reshape(10, 10))
    assert operators == ["Cast", "Add"]


def pruned(zeros: float) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    with torch.no_grad():
        weight = model[0].weight
        weight[weight.abs() < weight.abs().quantile(zeros)] = 0.0
    return model


@pytest.mark.integration
def test_a_pruned_model_is_delivered_sparse_and_runs_on_the_same_kernels(tmp_path: Path):
    files = {}
    for zeros in (0.0, 0.9):
        model = pruned(zeros)
        quantize(model)
        files[zeros] = tmp_path / f"{zeros}.onnx"
        export_onnx(model, (256,), files[zeros])
    dense, sparse = (Int8Model(files[zeros]) for zeros in (0.0, 0.9))
    assert sparse.int8_ops == dense.int8_ops
    saved = files[0.0].stat().st_size - files[0.9].stat().st_size
    # 32,768 levels become about 3,277 levels and as many gaps; some operators come with them.
    assert saved == pytest.approx(32768 - 2 * 3277, abs=1000)
