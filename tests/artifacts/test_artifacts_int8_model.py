"""An int8 model is delivered only if its answers are the fake-quant model's; a wrong one leaves no file."""

import numpy as np
import pytest

import fedq
from fedq.artifacts import int8_model as int8_delivery
from fedq.artifacts.int8_model import allowed, quantized_lines, write_int8_model, wrong_answers
from fedq.data import Dataset, Examples
from fedq.experiment import build
from fedq.quant import ExportError, Int8Model
from tests.quick import compose

pytestmark = pytest.mark.integration

WORDS = ["clients=2", "rounds=1", "model.hidden=[8]", "quant=int8"]


@pytest.fixture(scope="module")
def experiment():
    made = build(compose(WORDS))
    made.trainer.load(made.initial)
    return made


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_the_file_is_measured_as_it_lies_there(experiment, tmp_path):
    found = write_int8_model(experiment, tmp_path / "model.onnx")
    test = experiment.dataset.test
    answers = Int8Model(tmp_path / "model.onnx")(test.inputs).argmax(1)
    assert found["bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert found["value"] == np.mean(answers == test.targets)
    assert found["agreement"] > 0.99
    assert found["int8_ops"]["QGemm"] == 2
    assert left(tmp_path) == ["model.onnx"]


def test_a_file_with_other_answers_is_an_error_and_the_old_file_stays(experiment, tmp_path, monkeypatch):
    class Broken(Int8Model):
        def __call__(self, inputs):
            return np.roll(super().__call__(inputs), 1, axis=1)

    (tmp_path / "model.onnx").write_bytes(b"of the run")
    monkeypatch.setattr(int8_delivery, "Int8Model", Broken)
    found = write_int8_model(experiment, tmp_path / "model.onnx")
    assert set(found) == {"error"}
    assert "of 359 test examples" in found["error"]
    assert "quant.skip" in found["error"]
    assert left(tmp_path) == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"of the run"


@pytest.mark.slow
def test_a_run_whose_int8_model_answers_otherwise_has_failed_and_keeps_what_was_trained(tmp_path, monkeypatch):
    class Broken(Int8Model):
        def __call__(self, inputs):
            return np.roll(super().__call__(inputs), 1, axis=1)

    monkeypatch.setattr(int8_delivery, "Int8Model", Broken)
    result = fedq.run(WORDS, root=tmp_path, progress=False)
    assert result.status == "failed"
    assert "test examples otherwise" in result.status_reason
    assert result.int8_model_bytes is None
    assert (result.folder / "model.safetensors").is_file()
    assert not (result.folder / "model.onnx").exists()


@pytest.mark.slow
def test_without_classes_the_outputs_must_be_the_fake_quant_model_s(tmp_path, monkeypatch):
    class Shifted(Int8Model):
        """By 2 % of the outputs' spread."""

        def __call__(self, inputs):
            outputs = super().__call__(inputs)
            return outputs + 0.02 * np.abs(outputs - outputs.mean(0)).mean()

    random = np.random.default_rng(0)
    train, test = (
        Examples(random.normal(size=(n, 6)), random.normal(size=(n, 2)).astype(np.float32)) for n in (40, 300)
    )
    data = Dataset(train, None, test, num_outputs=2, fitted_on_private_data=False)
    made = build(compose([*WORDS, "train.loss=mse", "train.metric=r2"]), data=data)
    made.trainer.load(made.initial)
    assert "value" in write_int8_model(made, tmp_path / "model.onnx")
    monkeypatch.setattr(int8_delivery, "Int8Model", Shifted)
    error = write_int8_model(made, tmp_path / "other.onnx")["error"]
    assert "2.0% of their own spread away from the fake-quant model's" in error
    assert left(tmp_path) == ["model.onnx"]


def test_what_cannot_be_exported_is_an_error_and_leaves_nothing(experiment, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise ExportError("no kernel")

    monkeypatch.setattr(int8_delivery, "export_onnx", refuse)
    assert write_int8_model(experiment, tmp_path / "model.onnx") == {"error": "no kernel"}
    assert left(tmp_path) == []


@pytest.mark.parametrize("way", ["quant=off", "quant.activations=off"])
def test_without_integers_there_is_nothing_to_deliver(way, tmp_path):
    assert write_int8_model(build(compose([*WORDS, way])), tmp_path / "model.onnx") == {}
    assert left(tmp_path) == []


def test_dynamic_ranges_are_fixed_by_the_calibration_file(tmp_path):
    dynamic = [*WORDS, "quant.activations=dynamic"]
    without = build(compose(dynamic))
    np.save(tmp_path / "public.npy", without.dataset.train.inputs[:50])
    calibrated = build(compose([*dynamic, f"quant.calibration={tmp_path}/public.npy"]))
    assert write_int8_model(calibrated, tmp_path / "model.onnx")["agreement"] > 0.99
    assert write_int8_model(without, tmp_path / "other.onnx") == {}
    assert "quant.calibration" in quantized_lines(without)[-1]
    (tmp_path / "public.npy").unlink()
    assert "public.npy" in write_int8_model(calibrated, tmp_path / "other.onnx")["error"]
    assert left(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize(("examples", "most"), [(1, 1), (999, 1), (1000, 1), (2999, 2), (10_000, 10)])
def test_one_in_a_thousand_may_differ_and_one_of_fewer(examples, most):
    assert allowed(examples) == most


def test_answers_that_rounding_can_turn_are_not_wrong():
    expected = np.array([[1.0, 0.0], [0.5, 0.4999], [0.0, 1.0]])
    assert wrong_answers(expected[:, ::-1], expected) == 2
    assert wrong_answers(expected, expected) == 0
