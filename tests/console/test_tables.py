"""Tables between markers. Knows only fedq.console.tables."""

import pytest

from fedq.console.tables import markdown_table, read_table, replace_table

PAGE = "# Title\n\n<!-- BEGIN demo: make table -->\nold\n<!-- END demo -->\n\ntail\n"


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(PAGE)
    return path


def test_only_what_stands_between_the_markers_changes(page):
    assert replace_table(page, "demo", "| a |\n| - |")
    assert page.read_text() == PAGE.replace("old", "| a |\n| - |")


def test_writing_the_same_table_again_changes_nothing(page):
    replace_table(page, "demo", "new")
    before = page.stat().st_mtime_ns
    assert not replace_table(page, "demo", "new")
    assert page.stat().st_mtime_ns == before


def test_the_table_that_stands_there_can_be_read(page):
    replace_table(page, "demo", "| a |\n| - |")
    assert read_table(page, "demo") == "| a |\n| - |"


def test_windows_line_ends_stay(page):
    page.write_bytes(PAGE.replace("\n", "\r\n").encode())
    replace_table(page, "demo", "x\ny")
    assert page.read_bytes() == PAGE.replace("old", "x\ny").replace("\n", "\r\n").encode()


def test_a_backslash_in_a_table_is_taken_literally(page):
    replace_table(page, "demo", r"\1 \g<0>")
    assert read_table(page, "demo") == r"\1 \g<0>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "0 BEGIN and 0 END markers of table 'demo'; write one <!-- BEGIN demo: command -->"),
        (PAGE + PAGE, "2 BEGIN and 2 END markers"),
        (PAGE.replace("<!-- END demo -->", ""), "1 BEGIN and 0 END markers"),
        (PAGE.replace("demo", "demo2"), "0 BEGIN and 0 END markers"),
        ("<!-- END demo -->\n<!-- BEGIN demo: x -->", "table 'demo' ends before it begins"),
        (PAGE.replace("old", "<!-- BEGIN other: y -->"), "a marker of 'other' stands inside table 'demo'"),
    ],
)
def test_wrong_markers_are_an_error_and_change_nothing(page, text, message):
    page.write_text(text)
    with pytest.raises(ValueError, match=message):
        replace_table(page, "demo", "new")
    assert page.read_text() == text


def test_a_table_cannot_bring_its_own_marker(page):
    with pytest.raises(ValueError, match="contains a marker"):
        replace_table(page, "demo", "<!-- END demo -->")
    assert page.read_text() == PAGE


def test_numbers_stand_to_the_right_and_words_to_the_left():
    assert markdown_table(["run", "accuracy"], [["plain", "93.1 %"], ["int8", "9.0 %"]]) == (
        "| run   | accuracy |\n| ----- | -------: |\n| plain |   93.1 % |\n| int8  |    9.0 % |"
    )


def test_a_bar_in_a_cell_does_not_split_it():
    assert markdown_table(["a"], [["x|y\nz"]]).splitlines()[2] == "| x\\|y z |"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="has 1 cells for 2 columns"):
        markdown_table(["a", "b"], [["x"]])
