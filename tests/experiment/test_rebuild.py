"""A finished run's experiment again: the same model, and a clear word where it cannot be."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

import fedq
from fedq.config.config_file import read_config, write_config
from fedq.experiment.rebuild import finished_run, load_arrays
from fedq.results import write_model
from fedq.training import state_arrays
from tests.quick import compose

pytestmark = pytest.mark.integration

WORDS = ["rounds=1", "clients=2", "model.hidden=[8]", "quant=int8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Private, so that a rebuilt experiment has privacy to leave out; learned ranges are arrays of the model too."""
    root = tmp_path_factory.mktemp("runs")
    private = ["privacy=example", "train.epochs=null", "train.steps=1", "privacy.accountant=rdp"]
    return fedq.run([*WORDS, *private, "quant.activations=learned"], root=root, progress=False)


@pytest.mark.slow
def test_the_rebuilt_model_is_the_delivered_one(run):
    experiment = finished_run(run.folder).experiment()
    arrays = state_arrays(experiment.trainer.model)
    assert arrays.keys() == run.arrays.keys()
    assert all(np.array_equal(arrays[name], run.arrays[name]) for name in arrays)
    outputs = experiment.trainer.model_outputs(experiment.dataset.test.inputs)
    assert experiment.trainer.score_outputs(outputs.numpy(), experiment.dataset.test).metric == run.accuracy


def test_nothing_of_privacy_is_built_again_but_the_run_says_that_it_was_private(run):
    finished = finished_run(run.folder)
    assert finished.config.privacy.unit == "example"
    assert finished.experiment().plan is None


def test_a_config_comes_back_as_it_was_written(tmp_path):
    config = compose([*WORDS, "quant.skip=[output]", "privacy=example", "train.optimizer_options.momentum=0.9"])
    write_config(config, tmp_path / "config.yaml")
    config.overrides = []
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "result.json"])
def test_a_folder_without_its_files_is_no_finished_run(run, tmp_path, name):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no finished run, it has no {name}; give a folder"):
        finished_run(tmp_path / "run")


@pytest.mark.parametrize("text", ["nosuch: 1\n", "rounds: [\n", "- 1\n", "rounds: many\n"])
def test_a_damaged_config_is_named(run, tmp_path, text):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml: .*run again"):
        finished_run(tmp_path / "run")


def test_a_model_of_python_objects_cannot_come_back(tmp_path):
    def net():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    made = fedq.run(["rounds=1", "clients=2"], model=net, root=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"its model was a Python object .*fedq\.quant\.export_onnx"):
        finished_run(made.folder)


def test_arrays_of_another_model_are_refused(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    write_model(tmp_path / "run" / "model.safetensors", {**run.arrays, "hidden1.bias": np.zeros(9, np.float32)})
    with pytest.raises(ValueError, match=r"hidden1\.bias differs"):
        finished_run(tmp_path / "run").experiment()


def test_a_tied_weight_is_loaded_once(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    arrays = {name: np.full_like(array, 3) for name, array in state_arrays(model).items()}
    load_arrays(model, arrays, tmp_path / "model.safetensors")
    assert torch.equal(model[1].weight, torch.full((2, 2), 3.0))
