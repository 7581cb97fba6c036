"""The wheel, not the checkout: built, unpacked elsewhere, started from another folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_built_wheel_runs_the_demo_from_another_folder(tmp_path):
    wheels, home, elsewhere = tmp_path / "wheels", tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, SOURCE], check=True)
    (wheel,) = wheels.glob("fedq-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", home, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}

    def python(code, *arguments):
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)

    where = python("import fedq, fedq.config; print(fedq.__file__); print(fedq.config.conf_folder())").stdout
    assert where.splitlines() == [str(home / "fedq" / "__init__.py"), str(home / "fedq" / "conf")]
    assert (home / "fedq" / "py.typed").exists()
    done = python("from fedq.cli import main; main()", "run", "experiment=demo", "rounds=3")
    assert done.returncode == 0, done.stderr
    assert list(elsewhere.glob("outputs/*/*/model.onnx"))
    made = python("from fedq.cli import main; main()", "new", "app1")
    assert made.returncode == 0, made.stderr
    assert (elsewhere / "app1" / "app1" / "model.py").exists()
