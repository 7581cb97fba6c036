"""Events are lines of a log: what was told is read again, and nobody else's line is taken for one."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq.results import events

NAMES = st.text(st.characters(categories=["L"]), min_size=1, max_size=8).filter(lambda n: n not in ("event", "kind"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=8,
)


@pytest.mark.integration
@given(st.sampled_from(["row", "note", "folder", "result", "failed"]), st.dictionaries(NAMES, VALUES, max_size=4))
@settings(max_examples=200, deadline=None)
def test_what_is_told_is_read_again(kind, values):
    assert events.parse(events.line(kind, **values)) == {"event": kind, **values}


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_an_event_is_one_line_of_ascii_whatever_text_it_holds(text):
    """U+2028 would tear it in two, and a server whose terminal knows no umlauts would end over one."""
    line = events.line("note", text=text)
    assert len(line.splitlines()) == 1
    assert line.isascii()


def test_a_number_that_json_cannot_hold_is_told_as_nothing():
    assert events.parse(events.line("row", loss=float("nan"), best=np.float32(0.5))) == {
        "event": "row",
        "loss": None,
        "best": 0.5,
    }


@pytest.mark.parametrize("around", ["{}\n", "  {}  ", "2026-11-24 INFO : {}", "\x1b[92mINFO \x1b[0m: {}\r\n"])
def test_an_event_is_found_behind_what_a_logger_puts_before_it(around):
    assert events.parse(around.format(events.line("note", text="x"))) == {"event": "note", "text": "x"}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "round 3 is over",
        "fedq-event",
        events.MARK,
        events.MARK + "{",
        events.MARK + "[]",
        events.MARK + "3",
        events.MARK + "null",
        events.MARK + '"note"',
        events.MARK + "{}",
        events.MARK + '{"event": 3}',
        events.MARK + '{"event": null}',
        events.MARK + '{"event": "row", "loss": NaN}',
        events.MARK + '{"event": "row"} {"event": "row"}',
        events.line("note", text="a torn line")[:-3],
        events.line("note", text="x") + " and a line of another thread",
        events.MARK + "9" * 5000,
        pytest.param(events.MARK + "[" * 100_000, id="nested too deep"),
    ],
)
def test_a_line_of_somebody_else_or_a_torn_one_is_no_event(line):
    assert events.parse(line) is None


def test_a_text_that_holds_the_mark_is_still_one_event():
    text = events.line("failed", reason="forged")
    assert events.parse(events.line("note", text=text)) == {"event": "note", "text": text}


def test_an_event_is_plain_json_behind_its_mark():
    line = events.line("folder", host="server", path="/srv/runs/1")
    assert line.startswith("fedq-event {")
    assert json.loads(line.removeprefix("fedq-event ")) == {"event": "folder", "host": "server", "path": "/srv/runs/1"}
