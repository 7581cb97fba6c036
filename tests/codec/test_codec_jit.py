"""When the compiled kernels are handed out, and what happens where numba does not work."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedq
from fedq.codec import jit
from fedq.core.jit import load

MANY = jit.LEAST_VALUES
FEW = MANY - 1
# Calls the kernel that compiles fastest, and says where numba would have to write.
PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO)
import numpy as np
from fedq.codec import jit
kernels = jit.load()
print(None if kernels is None else kernels.largest_magnitude(np.array([1, -3], np.float32)))
"""


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has not asked yet."""
    load.cache_clear()
    monkeypatch.setattr(jit, "_work", jit.LEAST_WORK)
    yield
    load.cache_clear()


def run(program, cwd=None, **environment):
    environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip(), err


@pytest.mark.integration
def test_the_codec_and_a_small_vector_do_not_import_numba():
    program = "import sys; from fedq.codec import jit; assert jit.kernels({}) is None; print('numba' in sys.modules)"
    assert result(run(program.format(FEW)))[0] == "False"


@pytest.mark.integration
def test_a_process_that_has_packed_little_does_not_import_numba():
    program = """
import sys
import numpy as np
from fedq.codec import Layout, encode, jit
layout = Layout.flat(jit.LEAST_VALUES)
vector = np.zeros(layout.size, np.float32)
few = jit.LEAST_WORK // layout.size - 1
for _ in range(few):
    encode(vector, "sign", layout=layout)
print("numba" in sys.modules)
for _ in range(2):
    encode(vector, "int8", layout=layout)
print("numba" in sys.modules)
"""
    pytest.importorskip("numba")
    assert result(run(program))[0].split() == ["False", "True"]


def test_many_values_get_the_kernels(fresh):
    pytest.importorskip("numba")
    assert jit.kernels(MANY).encode_uniform is not None
    assert jit.kernels(FEW) is None


def test_the_environment_turns_the_kernels_off(fresh, monkeypatch):
    monkeypatch.setenv("FEDQ_JIT", "0")
    assert jit.kernels(MANY) is None


def test_a_wrong_environment_is_an_error(fresh, monkeypatch):
    monkeypatch.setenv("FEDQ_JIT", "no")
    with pytest.raises(ValueError, match="FEDQ_JIT='no': must be 0 or 1"):
        jit.kernels(MANY)


def test_without_numba_there_are_no_kernels_and_one_line_says_why(fresh, monkeypatch, caplog):
    for name in [name for name in sys.modules if name.startswith(("fedq.codec.kernel", "fedq.core.compiled"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    with caplog.at_level(logging.INFO, logger="fedq.core.jit"):
        assert [jit.kernels(MANY), jit.kernels(MANY)] == [None, None]
    assert len(caplog.records) == 1
    assert "numba" in caplog.text


@pytest.mark.slow
def test_processes_that_start_cold_at_once_share_one_cache(tmp_path):
    pytest.importorskip("numba")
    processes = [run(PROGRAM, NUMBA_CACHE_DIR=tmp_path) for _ in range(3)]
    assert [result(process)[0] for process in processes] == ["3.0"] * 3
    assert list(tmp_path.rglob("*largest_magnitude*.nbi"))


@pytest.mark.integration
def test_without_a_directory_to_cache_in_the_codec_works_without_numba(tmp_path):
    pytest.importorskip("numba")
    blocked = tmp_path / "a file"
    blocked.touch()
    installed = tmp_path / "installed"
    shutil.copytree(Path(fedq.__file__).parent, installed / "fedq", ignore=shutil.ignore_patterns("__pycache__"))
    # Neither numba's own directory, nor one beside the source, nor one of the user can be made.
    (installed / "fedq" / "codec" / "__pycache__").touch()
    out, err = result(run(PROGRAM, installed, NUMBA_CACHE_DIR="", PYTHONPATH="", HOME=blocked, XDG_CACHE_HOME=blocked))
    assert (out, "cannot cache function" in err) == ("None", True)
