"""Checked arrays: inputs and targets of a dataset and its splits. Does not know their source."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)  # eq: a comparison of arrays has no single truth value
class Examples:
    """Inputs float32 (n, ...); targets int64 (n,) for classes, float32 (n, k) for regression and multi-label.

    Arrays and torch tensors of other number types are converted; a conversion that would change the meaning is refused.

    >>> shard = Examples([[0, 1], [2, 3], [4, 5]], [0, 1, 1])
    >>> shard.inputs.dtype, shard.targets.dtype, len(shard[[0, 2]])
    (dtype('float32'), dtype('int64'), 2)
    """

    inputs: npt.NDArray[np.float32]
    targets: Targets

    def __post_init__(self) -> None:
        inputs, targets = _as_inputs(self.inputs), _as_targets(self.targets)
        if len(inputs) != len(targets):
            raise ValueError(
                f"{len(inputs)} inputs and {len(targets)} targets: each example needs one input and one target; "
                "make the first axes equal"
            )
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "targets", targets)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, indices: npt.ArrayLike | slice) -> "Examples":
        # A single number would drop the example axis, and Python would then iterate over malformed examples.
        if not isinstance(indices, slice) and np.ndim(indices) != 1:
            raise TypeError(f"Examples[{indices!r}]: index with a slice or a 1-D array, such as [0, 1]")
        # An empty list would become a float array, which numpy refuses as an index.
        rows: Any = indices if isinstance(indices, slice) or np.size(indices) else np.empty(0, np.int64)
        return Examples(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """The data of an experiment: one training set that is partitioned over clients, and two held-out sets.

    `groups` holds the natural client of each training example (strings or integers), if it is known.
    `fitted_on_private_data` says whether the inputs contain a statistic of the training examples (such as their mean).
    None: the loader does not say, and no run on this data is called private.
    """

    train: Examples
    validation: Examples | None
    test: Examples | None
    groups: npt.NDArray[Any] | None = None
    num_outputs: int = 0
    name: str = "data"
    fitted_on_private_data: bool | None = None

    def __post_init__(self) -> None:
        if not len(self.train):
            raise ValueError(f"{self.name}: there are no training examples; give at least 1")
        classes = self.train.targets.ndim == 1
        if self.num_outputs < (2 if classes else 1):
            rule = "classes, 2 or more, of integer targets" if classes else "columns of float targets"
            raise ValueError(
                f"{self.name}: num_outputs={self.num_outputs}: must be the number of {rule}; "
                "give num_outputs, or data that contains all of them"
            )
        for split, examples in self._splits():
            self._check(split, examples)
        if self.groups is not None:
            object.__setattr__(self, "groups", _as_groups(self.groups, len(self.train), self.name))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.train.inputs.shape[1:]

    def _splits(self) -> list[tuple[str, Examples]]:
        splits = [("train", self.train), ("validation", self.validation), ("test", self.test)]
        return [(split, examples) for split, examples in splits if examples is not None]

    def _check(self, split: str, examples: Examples) -> None:
        where = f"{self.name}: {split}"
        if examples.inputs.shape[1:] != self.input_shape:
            raise ValueError(
                f"{where} inputs have shape {examples.inputs.shape[1:]} an example, "
                f"train has {self.input_shape}; make them equal"
            )
        if examples.targets.ndim != self.train.targets.ndim:
            raise ValueError(
                f"{where} targets are {examples.targets.dtype}, train's are {self.train.targets.dtype}; "
                "use integer classes in all splits, or float columns in all"
            )
        if examples.targets.ndim == 2:
            if examples.targets.shape[1] != self.num_outputs:
                raise ValueError(
                    f"{where} targets have {examples.targets.shape[1]} columns, "
                    f"num_outputs={self.num_outputs}; make them equal"
                )
        elif len(examples) and examples.targets.max() >= self.num_outputs:
            worst = int(examples.targets.argmax())
            raise ValueError(
                f"{where} targets[{worst}]={examples.targets[worst]}: classes must be below "
                f"num_outputs={self.num_outputs}; raise num_outputs or number the classes from 0"
            )


def _array(values: Any) -> npt.NDArray[Any]:
    # Code that holds a tensor has imported torch already: this look-up saves this package torch's 1.5 s import.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.is_floating_point() else values)
    return np.asarray(values)


def _as_inputs(values: Any) -> npt.NDArray[np.float32]:
    array = _array(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"inputs are {array.dtype}: must be numbers; encode text and objects as numbers")
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise ValueError(
            f"inputs have shape {array.shape}: must be (examples, features...), with at least 1 feature; "
            "use reshape(-1, 1) for one feature"
        )
    return _finite(array, "inputs")


def _as_targets(values: Any) -> Targets:
    array = _array(values)
    kind = array.dtype.kind
    if array.ndim not in (1, 2) or array.shape[1:] == (0,) or kind not in "fiub":
        raise ValueError(
            f"targets are {array.dtype} of shape {array.shape}: must be integer classes (n,) or floats (n, k)"
        )
    if kind == "f" or (kind == "b" and array.ndim == 2):
        return _finite(array[:, None] if array.ndim == 1 else array, "targets")
    if array.ndim == 2 and array.shape[1] > 1:
        raise ValueError(
            f"targets are {array.dtype} of shape {array.shape}: integers mean one class an example; "
            "use argmax(axis=1) for one-hot rows, astype('float32') for several labels or values"
        )
    array = array.reshape(len(array))
    if len(array) and array.min() < 0:
        worst = int(array.argmin())
        raise ValueError(f"targets[{worst}]={array[worst]}: classes are numbered from 0; renumber them")
    return np.ascontiguousarray(array, dtype=np.int64)


def _finite(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # a value too large for float32 becomes inf, which is reported below
        numbers = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(numbers)
    if not finite.all():
        first = tuple(int(i) for i in np.unravel_index(int(finite.argmin()), finite.shape))
        raise ValueError(
            f"{name}{list(first)}={array[first]}: must be finite in float32; "
            f"remove example {first[0]}, or fix its value {', '.join(map(str, first[1:]))}"
        )
    return numbers


def _as_groups(values: Any, num_examples: int, name: str) -> npt.NDArray[Any]:
    groups = _array(values)
    if groups.dtype.kind == "O" and all(isinstance(key, str) for key in groups.flat):
        groups = groups.astype(str)
    if groups.dtype.kind not in "iuU":
        raise ValueError(f"{name}: groups are {groups.dtype}: client keys must be strings or integers; convert them")
    if groups.shape != (num_examples,):
        raise ValueError(
            f"{name}: groups have shape {groups.shape}: must be ({num_examples},); "
            "give one client key per training example"
        )
    return groups
