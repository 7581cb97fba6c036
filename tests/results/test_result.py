"""The result object and its file. Knows only fedq.results."""

import json
import math
import os

import numpy as np
import pytest

from fedq.results import RoundLog, read_result, write_model
from fedq.results.result import Result

# The list of the project's plan: a script that reads result.json relies on each of them.
PROMISED = [
    "accuracy",
    "accuracy_source",
    "int8_accuracy",
    "int8_ops",
    "int8_speedup",
    "int8_profile",
    "float_ops",
    "epsilon",
    "delta",
    "privacy_unit",
    "private",
    "rounds",
    "bytes_up",
    "bytes_down",
    "float32_bytes_up",
    "float32_bytes_down",
    "model_bytes",
    "int8_model_bytes",
    "wall_seconds",
    "seed",
    "fingerprint",
]


@pytest.mark.parametrize("key", PROMISED)
def test_result_json_holds(key, make_result, tmp_path):
    make_result().write(tmp_path)
    assert key in json.loads((tmp_path / "result.json").read_text())


def test_a_result_comes_back_with_history_and_arrays(make_result, tmp_path, four_rounds):
    written = make_result(config={"model": {"hidden": (64, 32)}}, fingerprint={"torch": "2.13"})
    written.write(tmp_path)
    with RoundLog(tmp_path / "rounds.jsonl") as log:
        for row in four_rounds:
            log.append(row)
    write_model(tmp_path / "model.safetensors", {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)})

    read = read_result(tmp_path)
    assert read.config == {"model": {"hidden": [64, 32]}}
    assert read.history == four_rounds
    assert read.arrays["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read.folder == tmp_path
    assert {**read.to_dict(), "config": None} == {**written.to_dict(), "config": None}


def test_a_result_without_other_files_can_be_read(make_result, tmp_path):
    make_result().write(tmp_path / "result.json")
    read = read_result(tmp_path)
    assert read.history == []
    assert read.arrays == {}


def test_numpy_numbers_and_nan_become_plain_json(make_result, tmp_path):
    make_result(accuracy=np.float32(0.5), seed=np.int64(3), int8_accuracy=math.nan).write(tmp_path)
    values = json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (values["accuracy"], values["seed"], values["int8_accuracy"]) == (0.5, 3, None)


def test_a_value_json_cannot_hold_is_named_and_nothing_is_written(make_result, tmp_path):
    with pytest.raises(ValueError, match=r"value\.config\.data\[1\] is a object, which JSON cannot hold"):
        make_result(config={"data": [1, object()]}).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_result(make_result, tmp_path, monkeypatch):
    make_result(seed=1).write(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make_result(seed=2).write(tmp_path)
    monkeypatch.undo()
    assert read_result(tmp_path).seed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_without_a_result_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"result\.json: no such file; give the folder of a run"):
        read_result(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": "x"}', '{"accuracy": NaN}'])
def test_a_damaged_result_is_named(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json: not a result .*run again"):
        read_result(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("status", "done"), ("accuracy_source", "train")])
def test_a_word_outside_the_closed_set_is_refused(make_result, field, value):
    with pytest.raises(ValueError, match=f"{field}='{value}': must be one of"):
        make_result(**{field: value})


def test_repr_says_how_well_how_private_and_how_dear(make_result):
    text = repr(make_result())
    assert "accuracy 75.0 %, int8 74.3 %" in text
    assert "epsilon 4.00, delta 1e-05 for one example of one client" in text
    assert "26.4 % of float32" in text  # (4,000 + 5,500) / (16,000 + 20,000) = 0.26389
    assert "NOT private" not in text


def test_repr_of_a_run_that_is_not_private_says_so(make_result):
    assert "NOT private" in repr(make_result(private=False))


def test_repr_without_privacy_claims_none(make_result):
    assert "no privacy claimed" in repr(make_result(epsilon=None, private=False))


def test_html_of_a_notebook_escapes_names(make_result):
    assert "<b>" not in make_result(name="<b>bold</b>")._repr_html_()


def test_two_results_of_equal_fields_are_equal(make_result):
    assert make_result() == make_result(arrays={"weight": np.ones(3)})
    assert make_result() != make_result(seed=1)


def test_every_field_but_the_large_ones_and_the_place_is_in_the_file(make_result):
    outside = {"history", "arrays", "folder", "elsewhere"}
    assert set(Result.__dataclass_fields__) - set(make_result().to_dict()) == outside
