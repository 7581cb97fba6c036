"""The idx reader and Fashion-MNIST: hand-made files, and broken ones."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fedq.data import DataNotFoundError, fashion_mnist, read_idx
from fedq.data.idx import DEBIAN_FOLDER, PIXEL_MEAN, PIXEL_STD


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def tiny_fashion(tmp_path):
    """20 training and 4 test images; training image i is all grey level i, but for one white pixel."""
    for prefix, count in (("train", 20), ("t10k", 4)):
        images = np.repeat(np.arange(count, dtype=np.uint8), 784).reshape(count, 28, 28)
        images[:, 27, 0] = 255
        labels = np.arange(count, dtype=np.uint8) % 10
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return tmp_path


def test_values_and_axes_are_read_in_file_order(tmp_path):
    file = tmp_path / "some.idx"
    file.write_bytes(bytes.fromhex("00000802 00000002 00000003 0102030405ff"))
    np.testing.assert_array_equal(read_idx(file), [[1, 2, 3], [4, 5, 255]])


def test_gzip_is_known_by_content_not_by_name(tmp_path):
    file = tmp_path / "no-suffix"
    file.write_bytes(gzip.compress(idx_bytes(np.array([7, 8], np.uint8))))
    np.testing.assert_array_equal(read_idx(file), [7, 8])


VALID = idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing: not an idx file"),
        (b"\0\0\x08", "starts with 00 00 08: not an idx file"),
        (b"\x01" + VALID[1:], "starts with 01 00 08 02: not an idx file"),
        (VALID[:2] + b"\x0d" + VALID[3:], "starts with 00 00 0d 02: not an idx file of unsigned bytes"),
        (VALID[:3] + b"\0" + VALID[4:], "starts with 00 00 08 00: not an idx file"),
        (VALID[:3] + b"\xff" + VALID[4:], "starts with 00 00 08 ff: not an idx file"),
        (VALID[:9], "ends within its header"),
        (VALID[:-1], "holds 5 bytes where its header says 6"),
        (VALID + b"\0", "holds more bytes where its header says 6"),
        (gzip.compress(VALID, mtime=0)[:-9], "broken gzip data"),
        (gzip.compress(VALID, mtime=0)[:-8] + bytes(8), "broken gzip data"),
        (gzip.compress(VALID, mtime=0)[:10] + b"\xff" * 30, "broken gzip data"),
    ],
)
def test_broken_file_is_named_with_what_is_wrong(tmp_path, content, message):
    file = tmp_path / "broken.idx"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"broken\.idx: {message}"):
        read_idx(file)


def test_claimed_size_is_refused_before_it_is_read(tmp_path):
    bomb = tmp_path / "bomb.gz"
    header = bytes([0, 0, 8, 4]) + struct.pack(">4I", *[2**32 - 1] * 4)
    bomb.write_bytes(gzip.compress(header + bytes(2**20)))
    with pytest.raises(ValueError, match="over the limit of 268435456"):
        read_idx(bomb)


def test_bound_can_be_met_exactly(tmp_path):
    file = tmp_path / "six.idx"
    file.write_bytes(VALID)
    assert read_idx(file, largest=6).size == 6
    with pytest.raises(ValueError, match=r"declares 6 bytes .* over the limit of 5"):
        read_idx(file, largest=5)


def test_pixels_are_standardised_by_the_published_constants(tiny_fashion):
    data = fashion_mnist(str(tiny_fashion))
    assert data.train.inputs.shape == (18, 1, 28, 28)
    np.testing.assert_allclose(data.train.inputs[0, 0, 0, 0], (0 / 255 - 0.2860) / 0.3530, rtol=1e-6)
    np.testing.assert_allclose(data.train.inputs[7, 0, 27, 0], (255 / 255 - 0.2860) / 0.3530, rtol=1e-6)
    np.testing.assert_allclose(data.test.inputs[3, 0, 5, 5], (3 / 255 - 0.2860) / 0.3530, rtol=1e-6)


def test_last_part_of_training_validates(tiny_fashion):
    data = fashion_mnist(str(tiny_fashion), validation_fraction=0.25)
    np.testing.assert_array_equal(data.train.targets, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(data.validation.targets, [5, 6, 7, 8, 9])
    np.testing.assert_array_equal(data.test.targets, [0, 1, 2, 3])


def test_without_validation_all_of_training_trains(tiny_fashion):
    data = fashion_mnist(str(tiny_fashion), validation_fraction=0)
    assert (len(data.train), data.validation, data.num_outputs) == (20, None, 10)


def test_published_constants_are_not_fitted_on_what_clients_hold(tiny_fashion):
    assert fashion_mnist(str(tiny_fashion)).fitted_on_private_data is False


def test_missing_file_is_named_with_ways_to_get_it(tiny_fashion):
    (tiny_fashion / "t10k-labels-idx1-ubyte").unlink()
    message = r"no file t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz.*apt-get install dataset-fashion-mnist"
    with pytest.raises(DataNotFoundError, match=message):
        fashion_mnist(str(tiny_fashion))


def test_missing_folder_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*nowhere: no file train-images-idx3-ubyte"):
        fashion_mnist(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "train-images-idx3-ubyte.gz",
            np.zeros((20, 8, 8), np.uint8),
            r"shape \(20, 8, 8\): must be \(n, 28, 28\)",
        ),
        (
            "t10k-labels-idx1-ubyte",
            np.zeros(3, np.uint8),
            r"shape \(3,\): must hold one label for each of 4 images",
        ),
        ("t10k-labels-idx1-ubyte", np.full(4, 10, np.uint8), r"test targets\[0\]=10: classes must be below"),
    ],
)
def test_other_data_in_the_folder_is_refused(tiny_fashion, name, values, message):
    (tiny_fashion / name).write_bytes(idx_bytes(values))
    with pytest.raises(ValueError, match=message):
        fashion_mnist(str(tiny_fashion))


@pytest.mark.slow
@pytest.mark.skipif(not Path(DEBIAN_FOLDER).is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_published_files_have_the_published_shape_and_constants():
    data = fashion_mnist(validation_fraction=0)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    np.testing.assert_array_equal(np.bincount(data.train.targets), [6_000] * 10)
    # The constants are the statistics to four digits: half a unit of the last, on the scale of [0, 1].
    assert abs(data.train.inputs.mean(dtype=np.float64)) * PIXEL_STD <= 0.5e-4
    assert abs(data.train.inputs.std(dtype=np.float64) - 1) * PIXEL_STD <= 0.5e-4
    assert (PIXEL_MEAN, PIXEL_STD) == (0.2860, 0.3530)
