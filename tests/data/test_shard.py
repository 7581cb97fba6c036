"""A shard file: one client's examples, and what it must know of the whole. Nothing in it is executed."""

import io
import json
import pickle

import numpy as np
import pytest

from fedq.data import Dataset, Examples, is_shard, read_shard, write_shard


@pytest.fixture
def whole():
    """Six examples of three classes, with a test set that stays with the server."""
    inputs = np.arange(24, dtype=np.float32).reshape(6, 2, 2) / 7
    train = Examples(inputs, np.array([0, 1, 2, 0, 1, 2]))
    return Dataset(train, validation=train[:1], test=train[:2], num_outputs=3, name="six", fitted_on_private_data=False)


@pytest.fixture
def file(tmp_path, whole):
    path = tmp_path / "a.shard.npz"
    write_shard(path, whole.train[[4, 0]], whole)
    return path


def test_examples_come_back_bit_for_bit_in_their_order(file, whole):
    part = read_shard(file)
    assert part.train.inputs.tobytes() == whole.train.inputs[[4, 0]].tobytes()
    assert part.train.targets.tolist() == [1, 0]


def test_a_client_that_lacks_the_highest_class_knows_of_it_all_the_same(file):
    assert read_shard(file).num_outputs == 3


@pytest.mark.parametrize("fitted", [True, False, None])
def test_how_the_inputs_were_scaled_is_not_forgotten(tmp_path, whole, fitted):
    like = Dataset(whole.train, validation=None, test=None, num_outputs=3, fitted_on_private_data=fitted)
    write_shard(tmp_path / "a.shard.npz", whole.train, like)
    assert read_shard(tmp_path / "a.shard.npz").fitted_on_private_data is fitted


def test_a_client_gets_no_part_of_the_servers_test_set(file):
    part = read_shard(file)
    assert (part.validation, part.test, part.name) == (None, None, "six")
    with np.load(file) as archive:
        assert sum(array.nbytes for array in (archive["inputs"], archive["targets"])) == 2 * 4 * 4 + 2 * 8


def test_real_valued_targets_come_back(tmp_path):
    train = Examples(np.eye(3, dtype=np.float32), np.float32([[0.5], [-1], [2]]))
    like = Dataset(train, validation=None, test=None, num_outputs=1)
    write_shard(tmp_path / "a.shard.npz", train, like)
    assert read_shard(tmp_path / "a.shard.npz").train.targets.tolist() == [[0.5], [-1], [2]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.shard.npz", True), ("/data/b.shard.npz", True), ("a.npz", False), ("a.csv", False), ("shard.npz", False)],
)
def test_a_shard_is_known_by_its_name(name, expected):
    assert is_shard(name) is expected


def archive(**parts):
    file = io.BytesIO()
    np.savez(file, **parts)
    return file.getvalue()


INPUTS, TARGETS = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)
ABOUT = {"num_outputs": 2, "name": "x", "fitted_on_private_data": None}


def told(**changes):
    return np.array(json.dumps({**ABOUT, **changes}))


DAMAGED = {
    "empty": b"",
    "noise": b"noise" * 100,
    "cut": archive(inputs=INPUTS, targets=TARGETS, about=told())[:400],
    "other bits": archive(inputs=INPUTS + 3, targets=TARGETS, about=told()).replace(b"\x40\x40", b"\x40\x41", 1),
    "a pickle": pickle.dumps({"inputs": INPUTS}),
    "pickled objects": archive(inputs=np.array([{}], object), targets=TARGETS, about=told()),
    "no targets": archive(inputs=INPUTS, about=told()),
    "no about": archive(inputs=INPUTS, targets=TARGETS),
    "about that is no JSON": archive(inputs=INPUTS, targets=TARGETS, about=np.array("{")),
    "about that is a list": archive(inputs=INPUTS, targets=TARGETS, about=np.array("[]")),
    "about without outputs": archive(inputs=INPUTS, targets=TARGETS, about=np.array("{}")),
    "fewer targets than inputs": archive(inputs=INPUTS, targets=TARGETS[:1], about=told()),
    "a class beyond the outputs": archive(inputs=INPUTS, targets=TARGETS + 2, about=told()),
    "no example": archive(inputs=INPUTS[:0], targets=TARGETS[:0], about=told()),
    "a value that is no number": archive(inputs=INPUTS + np.nan, targets=TARGETS, about=told()),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_shard_is_refused_with_its_file_and_the_mend(tmp_path, name):
    path = tmp_path / "a.shard.npz"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match=rf"{path}: not a shard file \(.*\); write it with fedq.data.write_shard"):
        read_shard(path)


def test_the_whole_file_that_the_damaged_ones_are_made_of_is_read(tmp_path):
    """Else they would be refused for another reason."""
    path = tmp_path / "a.shard.npz"
    path.write_bytes(archive(inputs=INPUTS, targets=TARGETS, about=told()))
    assert len(read_shard(path).train) == 2


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nosuch"):
        read_shard(tmp_path / "nosuch.shard.npz")
