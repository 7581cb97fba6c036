"""Numbers and foreign text as read by people. Knows only fedq.core.wording."""

import pytest

from fedq.core.wording import clock, duration, fixed, number, one_line, percent, plural, shares, size, spent, times


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_994, "9.99 kB"), (9_996, "10.0 kB"),
     (99_960, "100 kB"), (999_499, "999 kB"), (999_500, "1.00 MB"), (12_345_678, "12.3 MB"),
     (10**18, "1000 PB")],
)  # fmt: skip
def test_sizes_have_three_digits(num_bytes, text):
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [(None, "-"), (0.0, "0.00"), (8.0, "8.00"), (7.991, "8.00"), (8.0001, "8.01"), (0.001, "0.01"),
     (float("inf"), "infinite"), (float("nan"), "-")],
)  # fmt: skip
def test_a_privacy_loss_is_never_shown_smaller_than_it_is(epsilon, text):
    assert spent(epsilon) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.314, "0.31 s"), (0.996, "1.0 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"),
     (187, "3 min 07 s"), (3599.6, "1 h 00 min"), (7_500, "2 h 05 min")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (41.9, "0:41"), (187, "3:07"), (7_509, "2:05:09")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_what_is_not_known_is_a_dash():
    nan = float("nan")
    assert [percent(None), percent(nan), number(None), number(nan), fixed(None), fixed(nan)] == ["-"] * 6


@pytest.mark.parametrize(("value", "text"), [(2.3026, "2.303"), (0.0, "0.000"), (0.00021, "2.1e-04"), (1e6, "1.0e+06")])
def test_a_column_of_losses_lines_up(value, text):
    assert fixed(value) == text


def test_one_of_a_thing_has_no_s():
    assert [plural(1, "round"), plural(0, "round"), plural(1_200, "round")] == [
        "1 round",
        "0 rounds",
        "1,200 rounds",
    ]


@pytest.mark.parametrize("code", [0x00, 0x07, 0x0A, 0x0D, 0x1B, 0x7F, 0x9B, 0x2028, 0x202E, 0xD800, 0xE000])
def test_no_control_character_gets_through(code):
    assert chr(code) not in one_line(f"a{chr(code)}b")
    assert one_line(f"a{chr(code)}b").isprintable()


def test_letters_of_all_scripts_stay():
    assert one_line("Zürich 東京 β≤δ") == "Zürich 東京 β≤δ"


def test_a_long_text_is_cut():
    assert one_line("x" * 900, limit=10) == "xxxxxxx..."


def test_shares_are_whole_percents():
    assert shares({"QLinearConv": 0.614, "Tanh\n": 0.045}) == "61 % QLinearConv, 4 % Tanh\\n"
    assert shares({}) == "none"


@pytest.mark.parametrize(("ratio", "text"), [(None, "-"), (0.618, "0.62 times"), (float("inf"), "-")])
def test_times(ratio, text):
    assert times(ratio) == text
