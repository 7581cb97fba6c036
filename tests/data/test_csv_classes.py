"""Classes that are named, for files of several owners: each alone may lack one, and all must number them alike."""

import pytest

from fedq.data import csv

PLAIN = {"validation_fraction": 0.0, "test_fraction": 0.0, "standardize": False}


@pytest.fixture
def file(tmp_path):
    def write(*labels):
        path = tmp_path / "ward.csv"
        path.write_text("age,sick\n" + "".join(f"{n},{label}\n" for n, label in enumerate(labels)))
        return str(path)

    return write


def targets(path, classes):
    """The number of each row's label, in the order of the rows."""
    train = csv(path, "sick", classes=classes, **PLAIN).train
    ages = train.inputs[:, 0].argsort()
    return train.targets[ages].tolist()


def test_a_label_has_its_place_among_the_classes(file):
    path = file("no", "yes", "perhaps", "no")
    assert targets(path, ["yes", "no", "perhaps"]) == [1, 0, 2, 1]


def test_without_classes_labels_are_numbered_in_their_order(file):
    assert targets(file("no", "yes", "perhaps", "no"), None) == [0, 2, 1, 0]


def test_a_file_that_lacks_a_class_numbers_the_others_as_if_it_were_there(file):
    assert targets(file("yes", "yes"), ["no", "perhaps", "yes"]) == [2, 2]


def test_a_file_that_lacks_a_class_has_an_output_for_it(file):
    assert csv(file("yes", "yes"), "sick", classes=["no", "yes"], **PLAIN).num_outputs == 2


def test_without_classes_a_file_of_one_label_is_refused(file):
    with pytest.raises(ValueError, match="every row holds 'yes'"):
        csv(file("yes", "yes"), "sick", **PLAIN)


def test_a_label_that_was_not_named_is_reported_with_file_line_and_mend(file):
    path = file("no", "yes", "perhaps")
    with pytest.raises(ValueError, match=r"ward\.csv, line 4, column 'sick': 'perhaps' is not in .*no, yes.*name it"):
        csv(path, "sick", classes=["no", "yes"], **PLAIN)


def test_labels_that_are_numbers_are_compared_as_numbers(file):
    assert targets(file("1", "0", "1.0", "2"), [2, 1, 0]) == [1, 2, 1, 0]


def test_classes_may_be_given_as_texts_of_numbers(file):
    assert targets(file("10", "9"), ["9", "10"]) == [1, 0]


def test_a_number_that_was_not_named_is_reported(file):
    with pytest.raises(ValueError, match=r"line 3, column 'sick'.*not in data\.classes \(0, 1\)"):
        csv(file("1", "7"), "sick", classes=[0, 1], **PLAIN)


@pytest.mark.parametrize("classes", [["a", 1], ["1", "a"]], ids=str)
def test_a_file_of_numbers_alone_may_lack_the_one_class_that_is_a_text(classes, file):
    number = next(i for i, c in enumerate(classes) if str(c).isdigit())
    assert targets(file("1", "1"), classes) == [number, number]


def test_a_file_of_numbers_alone_may_lack_two_classes_that_are_texts(file):
    """A clinic of which all rows happen to be numbers, where others have texts too."""
    assert targets(file("1", "1"), ["1", "unknown", "other"]) == [0, 0]


def test_the_case_of_a_label_counts(file):
    with pytest.raises(ValueError, match="'Yes' is not in"):
        csv(file("Yes", "no"), "sick", classes=["no", "yes"], **PLAIN)


@pytest.mark.parametrize("classes", [[], ["no"], ["no", "no"], ["no", "yes", "no"]], ids=str)
def test_classes_are_two_or_more_different_labels(classes, file):
    with pytest.raises(ValueError, match="must be 2 or more different labels"):
        csv(file("no", "no"), "sick", classes=classes, **PLAIN)


def test_two_spellings_of_a_number_are_one_class(file):
    with pytest.raises(ValueError, match="must be 2 or more different labels"):
        csv(file("1", "1"), "sick", classes=["1", "1.0"], **PLAIN)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_what_is_no_classification_has_no_classes(task, file):
    with pytest.raises(ValueError, match=f"data.task={task} has no classes; leave it out"):
        csv(file("0", "1"), "sick", task=task, classes=[0, 1], **PLAIN)
