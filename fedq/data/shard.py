"""Write and read one client's examples as a file. Depends on arrays and one file format; not on the partition.

A rehearsal gives each client a shard file (`*.shard.npz`), so that a client process opens only its own data.
The file holds arrays and a line of JSON; nothing in it is executed or unpickled.
"""

import json
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fedq.data.examples import Dataset, Examples

SUFFIX = ".shard.npz"


def is_shard(path: str | Path) -> bool:
    """Whether the path names a shard file; other files belong to a loader."""
    return str(path).endswith(SUFFIX)


def write_shard(path: Path, examples: Examples, like: Dataset) -> None:
    """Write the examples, and what a client must know about the whole set: outputs, name, how inputs were scaled."""
    about = {
        "num_outputs": like.num_outputs,
        "name": like.name,
        "fitted_on_private_data": like.fitted_on_private_data,
    }
    np.savez(path, inputs=examples.inputs, targets=examples.targets, about=np.array(json.dumps(about)))


def read_shard(path: str | Path) -> Dataset:
    """Read all examples of one client, without validation and test set.

    ValueError for a file that is not a shard, OSError if it cannot be read.
    >>> import tempfile
    >>> from fedq.data import digits
    >>> whole = digits()
    >>> file = Path(tempfile.mkdtemp()) / "a.shard.npz"
    >>> write_shard(file, whole.train[:5], whole)
    >>> part = read_shard(file)
    >>> len(part.train), part.num_outputs, part.name, part.test
    (5, 10, 'digits', None)
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:  # numpy does not close a damaged file
            about = json.loads(str(file["about"]))
            train = Examples(file["inputs"], file["targets"])
        return Dataset(
            train,
            validation=None,
            test=None,
            num_outputs=int(about["num_outputs"]),
            name=str(about["name"]),
            fitted_on_private_data=_fitted(about["fitted_on_private_data"]),
        )
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile, NotImplementedError, RecursionError) as error:
        raise ValueError(f"{path}: not a shard file ({error}); write it with fedq.data.write_shard") from None


def _fitted(value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError("fitted_on_private_data must be true, false or null")
    return value
