"""Read a CSV file as a Dataset: the use of each column, and the conversion of cells to numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedq.data.examples import Dataset, Examples, Targets
from fedq.data.split import check_fractions, split_indices
from fedq.data.table import Table, as_number, read_table


def csv(
    path: str,
    target: str | Sequence[str],
    client: str | None = None,
    *,
    ignore: str | Sequence[str] = (),
    classes: Sequence[Any] | None = None,
    task: str = "classification",
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    standardize: bool = True,
    delimiter: str = ",",
    seed: int = 0,
) -> Dataset:
    """Read a CSV file; each column but target, client and ignored ones is a numeric feature; inputs (n, features).

    `target` is one column or several, separated by commas (a list if names hold commas). Classes are
    the sorted distinct labels, or `classes` in that order: files of several sites need it, since each may lack a class.
    Regression targets keep their units; multilabel columns hold 0 and 1. A missing value is an error.
    The column names, the set of labels and the client keys count as public.

    `standardize` uses mean and standard deviation of the training part. These are statistics of private
    data, so the dataset then has `fitted_on_private_data=True`; with `standardize=False` it has False.
    """
    if task not in TASKS:
        raise ValueError(f"data.task={task}: must be one of {', '.join(TASKS)}; try classification")
    check_fractions(validation_fraction=validation_fraction, test_fraction=test_fraction)
    table = read_table(path, delimiter=delimiter)
    target_columns, ignored = _names(target, table, "target"), _names(ignore, table, "ignore")
    if not target_columns:
        raise ValueError(f"data.target is empty: name a column; {table.path} has {', '.join(table.columns)}")
    if client is not None:
        table.require(client, "client")
    used = [*target_columns, *ignored, *([] if client is None else [client])]
    for column in used:
        if used.count(column) > 1:
            raise ValueError(
                f"column '{column}' has two uses; name it in one of data.target, data.client and data.ignore"
            )
    features = [column for column in table.columns if column not in used]
    if not features:
        raise ValueError(
            f"{table.path}: no feature column is left after data.target, data.client and data.ignore; "
            "name fewer columns there"
        )

    if classes is not None and task != "classification":
        raise ValueError(f"data.classes={list(classes)}: data.task={task} has no classes; leave it out")
    targets, num_outputs = TASKS[task](table, target_columns, classes)
    inputs = np.stack([table.numbers(column, fix=_FEATURE_FIX) for column in features], axis=1)
    parts = split_indices(len(table), validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed)
    if standardize:
        inputs = _standardized(inputs, by=inputs[parts[0]])
    train, validation, test = (Examples(inputs[part].astype(np.float32), targets[part]) for part in parts)
    return Dataset(
        train,
        validation=validation if len(validation) else None,
        test=test if len(test) else None,
        groups=None if client is None else _client_keys(table, client)[parts[0]],
        num_outputs=num_outputs,
        name=Path(path).stem,
        fitted_on_private_data=standardize,
    )


_FEATURE_FIX = "encode the column as numbers (one 0/1 column a value), or name it in data.ignore or data.client"


def _names(given: str | Sequence[str], table: Table, key: str) -> list[str]:
    if isinstance(given, str):
        # A name that is a column is one column, even if it contains a comma.
        whole = given in table.columns
        given = [given] if whole else [name.strip() for name in given.split(",") if name.strip()]
    names = list(given)
    for name in names:
        table.require(name, key)
    return names


def _classes(table: Table, columns: list[str], classes: Sequence[Any] | None) -> tuple[Targets, int]:
    """Index of each row's label in `classes`, or in the sorted distinct labels (by number if all are numbers)."""
    if len(columns) > 1:
        raise ValueError(
            f"data.target={','.join(columns)}: one column holds the classes; "
            "use one, or data.task=multilabel or data.task=regression"
        )
    column = columns[0]
    cells = table.texts(column)
    numbers = [as_number(cell) for cell in cells]
    values: npt.NDArray[Any] = np.array(cells)
    if None not in numbers:
        values = table.numbers(column, fix="")
        if (values != np.rint(values)).any():
            row = int(np.flatnonzero(values != np.rint(values))[0])
            raise ValueError(f"{table.where(row, column)}: '{cells[row]}' is not a class; use data.task=regression")
    if classes is not None:
        return _numbered(table, column, values, classes), len(classes)
    labels, indices = np.unique(values, return_inverse=True)
    if len(labels) < 2:
        raise ValueError(
            f"data.target={column}: every row holds '{cells[0]}', but there must be at least 2 classes; "
            "name another column"
        )
    return indices.astype(np.int64), len(labels)


def _numbered(table: Table, column: str, values: npt.NDArray[Any], classes: Sequence[Any]) -> Targets:
    """The index of each value in `classes`, which may contain more classes than this table."""
    wanted = [_label(c) for c in classes]
    if len(set(wanted)) != len(wanted) or len(wanted) < 2:
        raise ValueError(f"data.classes={list(classes)}: must be 2 or more different labels")
    place = {label: number for number, label in enumerate(wanted)}
    for row, value in enumerate(values.tolist()):
        value = _label(value)
        if value not in place:
            known = ", ".join(map(str, classes))
            raise ValueError(f"{table.where(row, column)}: {value!r} is not in data.classes ({known}); name it there")
    return np.array([place[_label(value)] for value in values.tolist()], dtype=np.int64)


def _label(value: Any) -> float | str:
    """The number that a value spells, else its text: 1, 1.0 and "1" are the same class in every file."""
    number = as_number(str(value))
    return str(value) if number is None else number


def _values(table: Table, columns: list[str], classes: Sequence[Any] | None) -> tuple[Targets, int]:
    """Float columns without a change."""
    fix = "data.task=regression needs numbers; use data.task=classification for labels"
    values = np.stack([table.numbers(column, fix=fix) for column in columns], axis=1)
    return values.astype(np.float32), len(columns)


def _labels(table: Table, columns: list[str], classes: Sequence[Any] | None) -> tuple[Targets, int]:
    """Columns of 0 and 1."""
    fix = "data.task=multilabel needs 0 or 1 in each target column"
    values = np.stack([table.numbers(column, fix=fix) for column in columns], axis=1)
    wrong = np.argwhere((values != 0) & (values != 1))
    if len(wrong):
        row, which = (int(i) for i in wrong[0])
        cell = table.columns[columns[which]][row]
        raise ValueError(f"{table.where(row, columns[which])}: '{cell}' is neither 0 nor 1; {fix}")
    return values.astype(np.float32), len(columns)


TASKS: dict[str, Callable[[Table, list[str], Sequence[Any] | None], tuple[Targets, int]]] = {
    "classification": _classes,
    "regression": _values,
    "multilabel": _labels,
}


def _standardized(inputs: npt.NDArray[np.float64], *, by: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean 0 and standard deviation 1 over the rows of `by`; a column that is constant there keeps its scale."""
    # Not `std > 0`: rounding leaves 1e-17 on a constant column, and the held-out rows would become huge.
    scale: npt.NDArray[np.float64] = np.where(np.ptp(by, axis=0) > 0, by.std(axis=0), 1.0)
    mean: npt.NDArray[np.float64] = by.mean(axis=0)
    return (inputs - mean) / scale


def _client_keys(table: Table, column: str) -> npt.NDArray[Any]:
    """Client keys as integers if they stay distinct, so that 10 sorts after 9; else as text."""
    cells = table.texts(column, refused={""})
    keys = np.array(cells)
    if all(cell.isascii() and cell.isdigit() and len(cell) <= 18 for cell in set(cells)):
        numbers = keys.astype(np.int64)
        if len(np.unique(numbers)) == len(np.unique(keys)):
            return numbers
    return keys
