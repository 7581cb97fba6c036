"""Fashion-MNIST from idx files, plain or gzipped. Reads files with size limits; downloads nothing."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from fedq.data.errors import DataNotFoundError
from fedq.data.examples import Dataset, Examples
from fedq.data.split import check_fractions, held_out

# Mean and standard deviation of the published training images / 255. The set is public, so these are
# configuration: they are not computed from the clients' data.
PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530
IMAGE_SHAPE = (28, 28)
LARGEST_FILE = 2**28  # bytes after decompression; the training images are 47 MB

DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
HOW_TO_GET = (
    "install Debian's package (apt-get install dataset-fashion-mnist), or put the four idx files of "
    "https://github.com/zalandoresearch/fashion-mnist into a folder and set data.path=FOLDER"
)


def fashion_mnist(path: str = DEBIAN_FOLDER, validation_fraction: float = 0.1) -> Dataset:
    """70,000 images of 28x28, standardised, shape (n, 1, 28, 28), 10 classes (Xiao et al., arXiv:1708.07747).

    `path` is the folder of the four idx files. The last part of the published training set is the validation set:
    the published order is random already. The published test set is the test set.
    """
    check_fractions(validation_fraction=validation_fraction)
    train = _read_split(Path(path).expanduser(), "train")
    test = _read_split(Path(path).expanduser(), "t10k")
    cut = len(train) - held_out(len(train), validation_fraction)
    validation = train[cut:] if cut < len(train) else None
    return Dataset(train[:cut], validation, test, None, 10, "fashion_mnist", fitted_on_private_data=False)


def read_idx(path: str | Path, *, largest: int = LARGEST_FILE) -> npt.NDArray[np.uint8]:
    """Read unsigned bytes from an idx file, gzipped or not; never more than `largest` bytes.

    Format: bytes 0, 0, type, number of axes; the axes' lengths as big-endian uint32; the values
    (http://yann.lecun.com/exdb/mnist).
    """
    path = Path(path)
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if zipped else raw
        try:
            return _parse(stream, path, largest)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: broken gzip data ({error}); copy the file again") from error


def _parse(stream: IO[bytes], path: Path, largest: int) -> npt.NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != 0x08 or not 1 <= magic[3] <= 4:
        raise ValueError(
            f"{path}: starts with {magic.hex(' ') or 'nothing'}: not an idx file of unsigned bytes "
            "(00 00 08, then 1 to 4 axes); check data.path"
        )
    lengths = stream.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise ValueError(f"{path}: ends within its header; copy the file again")
    shape = struct.unpack(f">{magic[3]}I", lengths)
    size = math.prod(shape)
    # The header is untrusted: its size is checked before anything of that size is read.
    if size > largest:
        raise ValueError(
            f"{path}: declares {size} bytes of shape {shape}, over the limit of {largest}; check data.path"
        )
    values = stream.read(size + 1)
    if len(values) != size:
        held = "more" if len(values) > size else len(values)
        raise ValueError(f"{path}: holds {held} bytes where its header says {size}; copy the file again")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _read_split(folder: Path, prefix: str) -> Examples:
    image_path = _find(folder, f"{prefix}-images-idx3-ubyte")
    label_path = _find(folder, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.shape[1:] != IMAGE_SHAPE:
        raise ValueError(f"{image_path}: shape {images.shape}: must be (n, 28, 28); check data.path")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{label_path}: shape {labels.shape}: must hold one label for each of {len(images)} images; check data.path"
        )
    pixels = images[:, None].astype(np.float32)
    pixels /= 255  # in place: a second copy of the training images would be 188 MB
    pixels -= PIXEL_MEAN
    pixels /= PIXEL_STD
    return Examples(pixels, labels.astype(np.int64))


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise DataNotFoundError(f"data.path={folder}: no file {name} or {name}.gz there; {HOW_TO_GET}")
