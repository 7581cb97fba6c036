"""What README.md and the guides show is what happens: examples run, commands compose, tables are the results'."""

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
GUIDES = ("README.md", "docs/running.md", "docs/your-model-and-data.md", "docs/extending.md", "docs/codecs.md")
TEXT = "\n".join((ROOT / name).read_text() for name in GUIDES)
TABLES = {
    "demo_ablation": "README.md",
    "fashion_mnist": "docs/results.md",
    "algorithms": "docs/results.md",
    "attacks": "docs/threat-model.md",
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    lines = "\n".join(blocks("bash")).splitlines()
    return list(dict.fromkeys(line.partition("#")[0].strip() for line in lines if line.startswith("fedq run")))


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


@pytest.mark.integration
@pytest.mark.parametrize("command", [c for c in commands() if "--help" not in c and " -m " not in c])
def test_every_command_is_a_runnable_experiment(command, elsewhere):
    from fedq.runtime import check

    try:
        assert check([w for w in words(command) if not w.startswith("--")])
    except ConfigError as error:
        if [p.key for p in error.problems] == ["data.path"] and not FASHION_MNIST.exists():
            pytest.skip("Debian's dataset-fashion-mnist is not installed")
        raise


@pytest.mark.integration
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
    for block in [b for b in blocks("python") if "fedq.load" in b]:
        names = {}
        exec(block, names)
    outputs = names["model"](names["test"].inputs)
    assert np.mean(outputs.argmax(1) == names["test"].targets) > 0.93


@pytest.mark.integration
@pytest.mark.parametrize("recipe", TABLES)
def test_the_tables_are_those_of_the_committed_results(recipe, monkeypatch, tmp_path, capsys):
    import importlib

    from simulations import recipe as recipes

    module = importlib.import_module(f"simulations.{recipe}")
    path = TABLES[recipe]
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text((ROOT / path).read_text())
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["recipe", "--table"])
    assert recipes.RESULTS.exists()
    module.main()
    assert read_table(tmp_path / path, recipe) == read_table(ROOT / path, recipe)


def test_the_readme_is_short_and_every_link_leads_somewhere():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#: ]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
