"""Turn the result of a user's own loader into a Dataset. Depends on arrays and tensors; not on files."""

from typing import Any

from fedq.data.examples import Dataset, Examples

ACCEPTED = (
    "a fedq.data.Dataset, (x_train, y_train), or ((x_train, y_train), (x_test, y_test)), "
    "where x and y are arrays or torch tensors"
)


def as_dataset(obj: Any, name: str) -> Dataset:
    """Check and wrap the object that `data._target_` returned; `name` is used in messages and results.

    The number of outputs is the highest class + 1, or the number of columns of float targets. Where a client holds
    its own data and may lack the highest class, return a Dataset, which states `num_outputs`. ValueError for other
    objects.

    >>> import numpy as np
    >>> data = as_dataset((np.eye(3), np.array([0, 1, 2])), name="corners")
    >>> data.input_shape, data.num_outputs, data.test
    ((3,), 3, None)
    """
    if isinstance(obj, Dataset):
        return obj
    train, test = _splits(obj, name)
    return Dataset(train, validation=None, test=test, num_outputs=_num_outputs(train, test), name=name)


def _splits(obj: Any, name: str) -> tuple[Examples, Examples | None]:
    if not isinstance(obj, (tuple, list)) or len(obj) != 2:
        raise ValueError(f"{name}: returned {_describe(obj)}; return {ACCEPTED}")
    nested = [isinstance(part, (tuple, list)) for part in obj]
    if not any(nested):
        return _examples(obj, f"{name}: train"), None
    if not all(nested) or any(len(part) != 2 for part in obj):
        raise ValueError(f"{name}: returned {_describe(obj)}; return {ACCEPTED}")
    return _examples(obj[0], f"{name}: train"), _examples(obj[1], f"{name}: test")


def _examples(pair: Any, where: str) -> Examples:
    # Nested lists are refused: a list of two rows and a pair of two arrays look the same.
    if any(not hasattr(part, "shape") for part in pair):
        raise ValueError(f"{where}: is {_describe(pair)}, not arrays; return {ACCEPTED}")
    try:
        return Examples(*pair)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error


def _num_outputs(train: Examples, test: Examples | None) -> int:
    if train.targets.ndim == 2:
        return int(train.targets.shape[1])
    # A class that only the test set contains still needs an output. `Dataset` refuses mixed types of targets.
    shown = [split.targets for split in (train, test) if split is not None and len(split)]
    return 1 + max((int(targets.max()) for targets in shown), default=-1)


def _describe(obj: Any) -> str:
    if isinstance(obj, (tuple, list)):
        inside = ", ".join(type(part).__name__ for part in obj[:4]) + (", ..." if len(obj) > 4 else "")
        return f"a {type(obj).__name__} of {len(obj)} ({inside})"
    return f"{'an' if type(obj).__name__[0] in 'aeiouAEIOU' else 'a'} {type(obj).__name__}"
