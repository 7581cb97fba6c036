"""Run folders, model files, client logs. Knows only fedq.results.folder."""

import re
import stat
from datetime import datetime

import numpy as np
import pytest

from fedq.core.durable import write_bytes
from fedq.results.folder import new_run_folder, read_model, write_model

NOON = datetime(2026, 11, 24, 12, 0, 5)


def test_a_run_folder_is_named_by_date_time_name_and_id(tmp_path):
    folder = new_run_folder(tmp_path / "outputs", "demo", now=NOON)
    assert folder.is_dir()
    assert re.fullmatch(r"outputs/2026-11-24/12-00-05-demo-[0-9a-f]{6}", folder.relative_to(tmp_path).as_posix())


def test_runs_of_one_second_never_share(tmp_path):
    assert len({new_run_folder(tmp_path, "demo", now=NOON) for _ in range(50)}) == 50


def test_a_taken_id_is_drawn_again(tmp_path, monkeypatch):
    ids = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(ids))
    assert [new_run_folder(tmp_path, "x", now=NOON).name[-6:] for _ in range(2)] == ["aaaaaa", "bbbbbb"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [("my run", "my-run"), ("../../etc", "etc"), ("a/b\\c", "a-b-c"), ("", "run"), ("..", "run"),
     ("x\n\x1b", "x"), ("ü" * 9, "run"), ("lr=0.1", "lr=0.1"), ("n" * 99, "n" * 40)],
)  # fmt: skip
def test_a_name_cannot_leave_its_folder(tmp_path, name, safe):
    folder = new_run_folder(tmp_path, name, now=NOON)
    assert folder.parent == tmp_path / "2026-11-24"
    assert folder.name[len("12-00-05-") : -len("-123456")] == safe


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "outputs").touch()
    with pytest.raises(OSError, match=r"outputs: cannot make a run folder here .*choose another root"):
        new_run_folder(tmp_path / "outputs", "demo")


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=np.float32).reshape(2, 3).T, np.float32(1.5), np.zeros((0, 4), np.float32),
     np.array([True, False]), np.arange(20, dtype=np.int8)[::3]],
)  # fmt: skip
def test_an_array_comes_back_with_shape_dtype_and_values(tmp_path, array):
    write_model(tmp_path / "model.safetensors", {"layer.weight": array})
    back = read_model(tmp_path / "model.safetensors")["layer.weight"]
    assert back.dtype == np.asarray(array).dtype
    assert back.shape == np.shape(array)
    assert np.array_equal(back, array)


def test_a_model_file_holds_no_metadata(tmp_path):
    write_model(tmp_path / "model.safetensors", {"w": np.ones(2, np.float32)})
    content = (tmp_path / "model.safetensors").read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    assert header.strip() == b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@pytest.mark.parametrize("array", [np.array([object()]), np.array(["x"]), np.array([1j])])
def test_what_is_no_array_of_numbers_is_refused(tmp_path, array):
    with pytest.raises(ValueError, match=r"array 'w' of dtype .*named arrays of numbers; drop it"):
        write_model(tmp_path / "model.safetensors", {"w": array})


def test_a_damaged_model_file_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        read_model(tmp_path / "model.safetensors")


def test_an_atomic_write_keeps_mode_and_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
