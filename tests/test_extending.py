"""docs/extending.md, done as written: files placed, lines added, and the new parts run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()


def block(name):
    """The code of the document whose first line names this file."""
    (found,) = re.findall(rf"```(?:python|yaml)\n# {re.escape(name)}\n(.*?)```", TEXT, re.DOTALL)
    return found


@pytest.fixture(scope="module")
def contributor(tmp_path_factory):
    """A copy of the package in which the algorithm was added by the document alone."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("fedq", "conf"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "fedq/algorithms/median_of_three.py").write_text(block("fedq/algorithms/median_of_three.py"))
    (place / "conf/algorithm/median_of_three.yaml").write_text(block("conf/algorithm/median_of_three.yaml"))
    init = place / "fedq/algorithms/__init__.py"
    init.write_text(init.read_text() + block("fedq/algorithms/__init__.py"))
    return place


@pytest.mark.slow
def test_a_noise_mechanism_added_by_the_document_trains_and_is_described(contributor):
    (contributor / "fedq/privacy/mechanisms/generous.py").write_text(block("fedq/privacy/mechanisms/generous.py"))
    init, choices = contributor / "fedq/privacy/mechanisms/__init__.py", contributor / "fedq/core/choices.py"
    line = block("fedq/privacy/mechanisms/__init__.py")
    changed, count = re.subn(r"    choices\.NOISES, \{.*\}\n", line, init.read_text())
    above = "from fedq.privacy.mechanisms.mechanism import"
    imported = "from fedq.privacy.mechanisms.generous import Generous\n"
    init.write_text(changed.replace(above, imported + above))
    named, lines = re.subn(r"NOISES: Final = .*\n", block("fedq/core/choices.py"), choices.read_text())
    choices.write_text(named)
    assert (count, lines) == (1, 1)
    run(contributor, "algorithm=fedavg", "privacy.noise=generous")
    newest = max((contributor / "outputs").glob("*/*"), key=lambda path: path.stat().st_mtime)
    environment = {**os.environ, "PYTHONPATH": str(contributor)}
    command = [sys.executable, "-c", "import fedq.cli; fedq.cli.main()", "privacy", "statement", str(newest)]
    told = subprocess.run(command, cwd=contributor, env=environment, capture_output=True, text=True, timeout=600)
    assert "1.5 times the stated noise" in " ".join(told.stdout.split()), told.stdout + told.stderr


def run(place, *words):
    environment = {**os.environ, "PYTHONPATH": str(place)}
    code = "import fedq.cli; fedq.cli.main()"
    overrides = ["experiment=demo", "clients=3", "rounds=2", "quant=off", "algorithm=median_of_three", *words]
    command = [sys.executable, "-c", code, "run", *overrides]
    told = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert told.returncode == 0, told.stdout + told.stderr
    newest = max((place / "outputs").glob("*/*/model.safetensors"), key=lambda path: path.stat().st_mtime)
    return newest.read_bytes()


def test_an_algorithm_added_by_the_document_runs_and_is_another_one(contributor):
    ours = run(contributor, "privacy=off", "algorithm.damping=0.5")
    assert ours != run(contributor, "privacy=off", "algorithm.damping=1.0")


@pytest.mark.slow
@pytest.mark.parametrize("other", [["runtime.workers=2"], ["runtime=ray"]])
def test_it_gives_the_same_bits_on_other_runtimes(contributor, other):
    assert run(contributor, "privacy=off", *other) == run(contributor, "privacy=off")


@pytest.mark.slow
def test_it_runs_under_dp(contributor):
    assert run(contributor)


def test_the_observer_of_the_document_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "fedq.Observer" in b]
    names = {}
    exec(code, names)
    assert len(names["accuracies"].seen) == 3
