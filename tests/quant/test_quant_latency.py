"""What is measured of the delivered model's speed: in turns, bounded in time, by onnxruntime's own profiler."""

import tempfile

import numpy as np
import pytest
import torch
from quant_models import Untraceable, mlp, tanh_cnn

from fedq.quant import ExportError, Int8Model, export_onnx, latency, quantize

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def delivered(tmp_path_factory):
    """(model, its int8 file)."""
    torch.manual_seed(0)
    model, path = mlp(), tmp_path_factory.mktemp("pace") / "model.onnx"
    quantize(model)
    export_onnx(model, (64,), path)
    return model, path


def test_a_profile_shares_the_time_among_the_operators_that_ran(delivered):
    _, path = delivered
    model = Int8Model(path)
    profile = model.profile(np.zeros((4, 64), np.float32), calls=2)
    assert {kind for kind, _ in profile} == set(model.int8_ops) | set(model.float_ops)
    assert sum(share for _, share in profile) == pytest.approx(1)
    assert [share for _, share in profile] == sorted((share for _, share in profile), reverse=True)


def test_a_profile_leaves_no_file_behind(delivered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Int8Model(delivered[1]).profile(np.zeros((1, 64), np.float32), calls=1)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_measured_beside_its_float_twin(delivered):
    found = latency.measure(*delivered, np.zeros((3, 64), np.float32))
    assert found.speedup > 0
    assert "QGemm" in found.profile


def test_few_examples_make_a_whole_batch(delivered, monkeypatch):
    seen = set()
    call = Int8Model.__call__
    monkeypatch.setattr(Int8Model, "__call__", lambda self, inputs: seen.add(inputs.shape) or call(self, inputs))
    latency.measure(*delivered, np.zeros((3, 64), np.float32))
    assert seen == {(latency.BATCH, 64)}


def test_without_a_float_file_nothing_is_measured(tmp_path):
    model = tanh_cnn()
    quantize(model)
    export_onnx(model, (1, 28, 28), tmp_path / "model.onnx")
    other = Untraceable()
    quantize(other)
    with pytest.raises(ExportError, match="cannot be captured"):
        latency.measure(other, tmp_path / "model.onnx", np.zeros((1, 1, 8, 8), np.float32))


def test_contenders_take_turns():
    turns: list[str] = []
    latency.measure_alternately(lambda: turns.append("a"), lambda: turns.append("b"), seconds=0)
    assert "".join(turns) == "abababab"  # a warm-up and the least number of calls


def test_a_slow_call_is_timed_three_times_and_no_more(monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(next(clock)))
    calls: list[int] = []
    assert latency.measure_alternately(lambda: calls.append(1), seconds=1) == [10.0]
    assert len(calls) == 1 + 3
