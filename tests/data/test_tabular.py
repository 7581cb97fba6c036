"""csv: which column becomes what, and the refusals that need to know it."""

import numpy as np
import pytest

from fedq.data import ByColumn, csv

ROWS = [(i, 10.0 * i + i % 3, "xyz"[i % 3], i % 4) for i in range(40)]  # row number, feature, label, client


@pytest.fixture
def write(tmp_path):
    def to_file(content: str) -> str:
        file = tmp_path / "patients.csv"
        file.write_text(content)
        return str(file)

    return to_file


@pytest.fixture
def patients(write):
    return write("row,size,kind,ward\n" + "".join(",".join(map(str, row)) + "\n" for row in ROWS))


def splits_of(data):
    return [split for split in (data.train, data.validation, data.test) if split is not None]


def test_features_are_the_columns_without_another_use(patients):
    data = csv(patients, target="kind", client="ward", standardize=False)
    for split in splits_of(data):
        expected = [ROWS[int(row)][:2] for row in split.inputs[:, 0]]
        np.testing.assert_array_equal(split.inputs, np.array(expected, np.float32))
    assert (data.name, data.input_shape) == ("patients", (2,))


def test_each_row_is_in_one_split(patients):
    data = csv(patients, target="kind", client="ward", standardize=False)
    rows = np.concatenate([split.inputs[:, 0] for split in splits_of(data)])
    assert sorted(rows) == list(range(40))
    assert [len(split) for split in splits_of(data)] == [28, 4, 8]


def test_text_labels_become_classes_in_sorted_order(patients):
    data = csv(patients, target="kind", client="ward", standardize=False)
    assert data.num_outputs == 3
    for split in splits_of(data):
        np.testing.assert_array_equal(split.targets, split.inputs[:, 0].astype(int) % 3)


def test_numeric_labels_become_classes_in_number_order(write):
    data = csv(write("x,y\n0,10\n1,9\n2,9.0\n"), "y", validation_fraction=0, test_fraction=0, standardize=False)
    by_row = data.train.targets[data.train.inputs[:, 0].argsort()]
    np.testing.assert_array_equal(by_row, [1, 0, 0])


def test_client_keys_follow_the_training_rows(patients):
    data = csv(patients, target="kind", client="ward", standardize=False)
    np.testing.assert_array_equal(data.groups, data.train.inputs[:, 0].astype(int) % 4)
    shards = ByColumn()(data.train.targets, data.groups, clients=4, rng=np.random.default_rng(0))
    assert [set(data.groups[shard]) for shard in shards] == [{0}, {1}, {2}, {3}]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [("9,10", [9, 10]), ("09,9", ["09", "9"]), ("NA,DE", ["DE", "NA"]), ("-1,2", ["-1", "2"])],
)
def test_client_keys_are_integers_only_where_that_keeps_them_apart(write, keys, expected):
    first, second = keys.split(",")
    file = write(f"x,y,c\n0,0,{first}\n1,1,{second}\n")
    data = csv(file, "y", "c", validation_fraction=0, test_fraction=0)
    assert sorted(data.groups.tolist()) == expected


def test_standardised_features_use_the_statistics_of_the_training_part_alone(patients):
    raw, scaled = (csv(patients, "kind", "ward", standardize=choice) for choice in (False, True))
    mean, deviation = raw.train.inputs.mean(axis=0), raw.train.inputs.std(axis=0)
    for before, after in zip(splits_of(raw), splits_of(scaled), strict=True):
        np.testing.assert_allclose(after.inputs, (before.inputs - mean) / deviation, rtol=1e-4, atol=1e-5)


def test_statistics_of_private_rows_are_declared(patients):
    assert csv(patients, "kind", "ward").fitted_on_private_data is True
    assert csv(patients, "kind", "ward", standardize=False).fitted_on_private_data is False


def test_constant_feature_becomes_zero_not_noise(write):
    # The mean of twelve 0.1 is rounded, so their deviation is about 1e-17, and dividing by it would give 1.
    assert np.full((12, 1), 0.1).std(axis=0) > 0
    file = write("x,y\n" + "".join(f"0.1,{i % 2}\n" for i in range(12)))
    data = csv(file, "y", validation_fraction=0, test_fraction=0)
    assert np.abs(data.train.inputs).max() < 1e-6


def test_regression_targets_keep_their_units(patients):
    data = csv(patients, target="size,ward", ignore="kind", task="regression", standardize=False)
    assert (data.num_outputs, data.train.targets.dtype) == (2, np.float32)
    for split in splits_of(data):
        expected = [(ROWS[int(row)][1], ROWS[int(row)][3]) for row in split.inputs[:, 0]]
        np.testing.assert_array_equal(split.targets, np.array(expected, np.float32))


def test_multilabel_columns_hold_zeros_and_ones(write):
    file = write("x,wet,cold\n0,1,0\n1,0,1\n2,1,1\n")
    options = {"task": "multilabel", "validation_fraction": 0, "test_fraction": 0, "standardize": False}
    data = csv(file, "wet,cold", **options)
    by_row = data.train.targets[data.train.inputs[:, 0].argsort()]
    np.testing.assert_array_equal(by_row, [[1, 0], [0, 1], [1, 1]])


@pytest.mark.parametrize("target", ["a,b", ["a,b"]])
def test_column_whose_name_holds_a_comma_can_be_the_target(write, target):
    data = csv(write('x,"a,b"\n0,0\n1,1\n2,0\n'), target, validation_fraction=0, test_fraction=0)
    assert data.input_shape == (1,)


def test_split_is_fixed_unless_its_seed_is_changed(patients):
    first, again, other = (csv(patients, "kind", "ward", seed=seed).train.inputs for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "knd"}, r"data\.target=knd: no such column .*did you mean kind\?"),
        ({"target": "kind", "client": "wards"}, r"data\.client=wards: .*did you mean ward\?"),
        ({"target": "kind", "ignore": "rwo"}, r"data\.ignore=rwo: .*did you mean row\?"),
        ({"target": ""}, r"data\.target is empty: name a column; .* has row, size, kind, ward"),
        ({"target": "kind,kind"}, "column 'kind' has two uses"),
        ({"target": "kind", "client": "kind"}, "column 'kind' has two uses"),
        ({"target": "kind", "client": "ward", "ignore": "ward"}, "column 'ward' has two uses"),
        ({"target": "kind", "ignore": "row,size,ward"}, "no feature column is left"),
        ({"target": "ward"}, r"line 2, column 'kind': 'x' is not a number; .*data\.ignore or data\.client"),
        (
            {"target": "size", "task": "ranking"},
            "data.task=ranking: must be one of classification, regression",
        ),
        ({"target": "kind,ward"}, "data.target=kind,ward: one column holds the classes"),
        (
            {"target": "kind", "task": "regression"},
            r"line 2, column 'kind': 'x' is not a number; data\.task=regr",
        ),
        (
            {"target": "ward", "ignore": "kind", "task": "multilabel"},
            "line 4, column 'ward': '2' is neither 0 nor 1",
        ),
        ({"target": "kind", "client": "ward", "test_fraction": 1}, r"data\.test_fraction=1: must be"),
    ],
)
def test_wrong_use_of_a_column_is_refused(patients, options, message):
    with pytest.raises(ValueError, match=message):
        csv(patients, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x,y\n1,0\n,1\n", "line 3, column 'x': the cell is empty"),
        ("x,y\n1,0\nNaN,1\n", "line 3, column 'x': the cell holds 'NaN', a mark for a missing value"),
        ("x,y\n1,0\n2,\n", "line 3, column 'y': the cell is empty"),
        ("x,y\n1,sick\n2,NA\n", "line 3, column 'y': the cell holds 'NA'"),
        ("x,y\n1,0\n2,0.5\n", "line 3, column 'y': '0.5' is not a class; use data.task=regression"),
        ("x,y\n1,0\n2,inf\n", "line 3, column 'y': 'inf' is not a finite float32"),
        ("x,y\n1,7\n2,7\n", "data.target=y: every row holds '7'"),
        ("x,y\n1,0\n2,1\n", "2 examples split into 1 for validation and 1 for test leave none"),
    ],
)
def test_wrong_cell_is_named_with_its_line_and_column(write, content, message):
    with pytest.raises(ValueError, match=message):
        csv(write(content), "y")


def test_empty_client_key_is_named(write):
    with pytest.raises(ValueError, match="line 3, column 'c': the cell is empty"):
        csv(write("x,y,c\n1,0,a\n2,1,\n3,1,b\n"), "y", "c")
