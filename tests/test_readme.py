"""What README.md shows is what happens: its examples run, its commands compose, its tables are the results'."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from fedq.config import ConfigError
from fedq.console import read_table

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    lines = "\n".join(blocks("bash")).splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.startswith("fedq run")]


def words(command):
    return shlex.split(command)[2:]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module, *rest = [b for b in blocks("python") if "class Net" in b]
    assert not rest
    (tmp_path / "mine.py").write_text(module)
    sys.modules.pop("mine", None)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("command", [c for c in commands() if "--help" not in c and " -m " not in c])
def test_every_command_is_a_runnable_experiment(command, elsewhere):
    from fedq.runtime import check

    try:
        assert check([w for w in words(command) if not w.startswith("--")])
    except ConfigError as error:
        if [p.key for p in error.problems] == ["data.path"] and not FASHION_MNIST.exists():
            pytest.skip("Debian's dataset-fashion-mnist is not installed")
        raise


def test_the_example_of_an_own_model_and_data_runs_as_it_stands(elsewhere):
    import fedq

    (command,) = [c for c in commands() if "mine.Net" in c]
    by_name = fedq.run(words(command), progress=False)
    assert by_name.accuracy > 0.8
    assert by_name.int8_ops


@pytest.mark.slow
def test_the_example_with_objects_runs_as_it_stands(elsewhere):
    (block,) = [b for b in blocks("python") if "model=Net" in b]
    names = {}
    exec(block, names)
    assert names["result"].rounds == 10


@pytest.mark.slow
def test_the_python_example_runs_as_it_stands(elsewhere):
    (block,) = [b for b in blocks("python") if "fedq.load" in b]
    names = {}
    exec(block, names)
    outputs = names["model"](names["test"].inputs)
    assert np.mean(outputs.argmax(1) == names["test"].targets) > 0.93


@pytest.mark.parametrize("recipe", ["demo_ablation", "fashion_mnist"])
def test_the_tables_are_those_of_the_committed_results(recipe, monkeypatch, tmp_path, capsys):
    import importlib

    from simulations import recipe as recipes

    module = importlib.import_module(f"simulations.{recipe}")
    (tmp_path / "README.md").write_text(README)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["recipe", "--table"])
    assert recipes.RESULTS.exists()
    module.main()
    assert read_table(tmp_path / "README.md", recipe) == read_table(ROOT / "README.md", recipe)
