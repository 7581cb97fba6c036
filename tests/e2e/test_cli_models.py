"""`fedq export` and `fedq inspect` on real runs: files, figures, exit statuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fedq
from fedq.cli import app

WORDS = ["rounds=1", "clients=2", "model.hidden=[16]"]


pytestmark = pytest.mark.usefixtures("terminal_elsewhere")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fedq.run([*WORDS, "quant=int8"], root=tmp_path_factory.mktemp("runs"), progress=False)


def made(*words, **objects):
    return fedq.run([*WORDS, *words], root="outputs", progress=False, **objects).folder


def fedq_says(*arguments, status=0):
    answer = CliRunner().invoke(app, [str(a) for a in arguments])
    assert answer.exit_code == status, answer.output
    assert "Traceback" not in answer.output
    return answer.stdout if status == 0 else " ".join(answer.stderr.split())


@pytest.mark.slow
def test_an_export_is_the_run_s_own_file_again(run):
    again = Path("again.onnx")
    page = fedq_says("export", run.folder, "--output", again)
    assert again.read_bytes() == (run.folder / "model.onnx").read_bytes()
    for words in (again.name, "QGemm", f"{100 * run.accuracy:.2f} %", f"{100 * run.int8_accuracy:.2f} %"):
        assert words in page


@pytest.mark.slow
def test_an_export_puts_a_lost_file_back(run, tmp_path):
    folder = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    (folder / "model.onnx").unlink()
    fedq_says("export", folder, "--format", "onnx")
    assert (folder / "model.onnx").read_bytes() == (run.folder / "model.onnx").read_bytes()


def test_a_file_with_other_answers_fails_and_is_not_kept(run, monkeypatch):
    from fedq.artifacts import int8_model as int8_delivery

    class Broken(int8_delivery.Int8Model):
        def __call__(self, inputs):
            return np.roll(super().__call__(inputs), 1, axis=1)

    monkeypatch.setattr(int8_delivery, "Int8Model", Broken)
    assert "test examples otherwise" in fedq_says("export", run.folder, "--output", "wrong.onnx", status=1)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "nowhere"], ["nowhere: no finished run", "fedq run made"]),
        (["inspect", "nowhere/model.onnx"], ["nowhere: no finished run"]),
        (["export", "RUN", "--format", "tflite"], ["--format tflite", "Use --format onnx"]),
        (["export", "RUN", "--output", "no/such/file.onnx"], ["--output no/such/file.onnx", "a folder that exists"]),
    ],
)
def test_wrong_arguments_are_refused_with_the_mend(run, arguments, words):
    told = fedq_says(*[str(run.folder) if a == "RUN" else a for a in arguments], status=2)
    for word in words:
        assert word in told


@pytest.mark.parametrize("command", ["export", "inspect"])
def test_a_float_run_has_nothing_to_show(command):
    assert "quant=off" in fedq_says(command, made("quant=off"), status=2)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["export", "inspect"])
def test_objects_of_python_cannot_be_rebuilt(command):
    from torch import nn

    def net():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    folder = fedq.run(["rounds=1", "clients=2", "quant=int8"], model=net, root="outputs", progress=False).folder
    assert "fedq.quant.export_onnx" in fedq_says(command, folder, status=2)


@pytest.mark.slow
def test_data_that_are_gone_are_named():
    rows = "\n".join(f"{i % 7},{i % 3},{'yes' if i % 2 else 'no'}" for i in range(120))
    Path("table.csv").write_text(f"a,b,label\n{rows}\n")
    folder = made("quant=int8", "data=csv", "data.path=table.csv", "data.target=label")
    Path("table.csv").unlink()
    assert "data.path=table.csv" in fedq_says("export", folder, status=2)


def test_float_activations_can_be_inspected_but_not_exported():
    folder = made("quant=int8", "quant.activations=off")
    assert "quant.activations=off" in fedq_says("export", folder, status=2)
    told = json.loads(fedq_says("inspect", folder, "--json"))
    assert [layer["grids"] for layer in told["layers"]] == [[], []]
    assert told["file_bytes"] is None


@pytest.mark.parametrize("name", ["", "model.onnx", "model.safetensors"])
def test_a_run_is_named_by_its_folder_or_a_model_in_it(run, name):
    page = fedq_says("inspect", run.folder / name)
    for words in ("hidden1", "output", "64", "[-4, 4]", "256 of 359 test examples", "Try quant."):
        assert words in page
    assert max(map(len, page.splitlines())) <= 100 or str(run.folder) in page


def test_json_is_one_object(run):
    told = json.loads(fedq_says("inspect", run.folder, "--json"))
    assert [layer["name"] for layer in told["layers"]] == ["hidden1", "output"]
    assert told["parameters"] == sum(array.size for array in run.arrays.values())
    assert told["file_bytes"] == run.int8_model_bytes > told["int8_bytes"]
    assert told["loses_most"]["layer"] in ("hidden1", "output")


@pytest.mark.slow
def test_under_dp_it_is_said_whose_data_were_looked_at():
    private = ["privacy=example", "train.epochs=null", "train.steps=1", "privacy.accountant=rdp"]
    folder = made("quant=int8", *private)
    assert "test data, which is not private data" in fedq_says("inspect", folder)
