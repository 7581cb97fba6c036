"""read_table: which files are tables, and where each problem is."""

import pytest

from fedq.data import DataNotFoundError
from fedq.data.table import read_table


@pytest.fixture
def write(tmp_path):
    def to_file(content: str | bytes):
        file = tmp_path / "some.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return to_file


def test_columns_hold_stripped_cells_in_row_order(write):
    table = read_table(write("age, city\n1, Ulm \n 2,Bonn\n"))
    assert table.columns == {"age": ["1", "2"], "city": ["Ulm", "Bonn"]}


def test_other_delimiter_is_honoured(write):
    assert read_table(write("a;b\n1,5;2\n"), delimiter=";").columns == {"a": ["1,5"], "b": ["2"]}


def test_byte_order_mark_is_no_part_of_the_first_name(write):
    assert list(read_table(write("\ufeffa,b\n1,2\n")).columns) == ["a", "b"]


def test_blank_lines_and_windows_line_ends_are_no_rows(write):
    assert read_table(write("\r\na,b\r\n\r\n1,2\r\n\r\n")).columns == {"a": ["1"], "b": ["2"]}


def test_line_numbers_count_line_breaks_within_quotes(write):
    table = read_table(write('a,b\n"one\ntwo",2\n3,4\n'))
    assert table.lines == [3, 4]
    assert table.where(1, "b").endswith("some.csv, line 4, column 'b'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty; the first row must name the columns"),
        ("a,b\n", "no rows below the header"),
        ("a,,c\n1,2,3\n", "column 2 has no name"),
        ("a,b,a\n1,2,3\n", "names column 'a' twice"),
        ("a,b\n1,2\n1\n", "line 3: 1 cells, but the header names 2 columns"),
        ("a,b\n1,2,3\n", r"line 2: 3 cells, .*set data.delimiter \(now ','\)"),
        ('a,b\n1,"2\n', "line 2: unexpected end of data; fix the quotes"),
        ('a,b\n1,"2"3\n', "line 2: .*expected after.*; fix the quotes"),
        (b"a,b\n1,\xff\n", "not UTF-8 text .*save it as UTF-8"),
    ],
)
def test_file_that_is_no_table_is_refused(write, content, message):
    with pytest.raises(ValueError, match=rf"some\.csv.*{message}"):
        read_table(write(content))


def test_missing_file_names_the_key_to_set(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"data\.path=.*none\.csv: no such file; set data\.path"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize("delimiter", ["", ", "])
def test_delimiter_is_one_character(write, delimiter):
    with pytest.raises(ValueError, match=r"data\.delimiter='.*': must be one character"):
        read_table(write("a,b\n1,2\n"), delimiter=delimiter)


def test_unknown_column_is_answered_with_the_nearest(write):
    table = read_table(write("age,income\n1,2\n"))
    with pytest.raises(ValueError, match=r"data\.target=incone: no such column .*did you mean income\?"):
        table.require("incone", "target")


@pytest.mark.parametrize("cell", ["", "  ", "NA", "n/a", "NaN", "null", "?"])
def test_cell_without_value_is_named(write, cell):
    table = read_table(write(f"a,b\n1,2\n3,{cell}\n"))
    with pytest.raises(ValueError, match=r"line 3, column 'b': the cell .*fill it in or delete the row"):
        table.numbers("b", fix="")


@pytest.mark.parametrize("cell", ["inf", "-inf", "1e39", "-1e400"])
def test_number_that_float32_cannot_hold_is_named(write, cell):
    table = read_table(write(f"a\n1\n{cell}\n"))
    with pytest.raises(ValueError, match=rf"line 3, column 'a': '{cell}' is not a finite float32"):
        table.numbers("a", fix="")


@pytest.mark.parametrize("cell", ["red", "1_000", "1,5", "0x10"])
def test_text_among_numbers_is_named_with_the_mend(write, cell):
    table = read_table(write(f"a;b\n1;2\n{cell};2\n"), delimiter=";")
    with pytest.raises(ValueError, match=rf"line 3, column 'a': '{cell}' is not a number; do this"):
        table.numbers("a", fix="do this")


def test_numbers_are_read_in_all_usual_spellings(write):
    table = read_table(write("a\n1\n-2.5\n+3e2\n.5\n"))
    assert table.numbers("a", fix="").tolist() == [1, -2.5, 300, 0.5]
