"""Observers see what is on disk, cannot end a run, and are told of its end whatever it was."""

import logging
from pathlib import Path

import pytest

import fedq
from fedq.runtime import Observer, Observers, RunStart

pytestmark = pytest.mark.integration

WORDS = ["clients=2", "rounds=2", "data=digits", "model=linear"]


class Notebook(Observer):
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def on_run_start(self, run):
        self.told.append(("start", run.name, run.rounds, run.folder.is_dir()))

    def on_round(self, row):
        self.told.append(("round", row.round, row.status))

    def on_note(self, text):
        self.told.append(("note", text))

    def on_run_end(self, result):
        self.told.append(("end", None if result is None else result.status))


class Broken(Observer):
    def on_round(self, row):
        raise RuntimeError("no disk")


def test_a_run_tells_of_its_start_its_rounds_and_its_end(tmp_path):
    notebook = Notebook()
    fedq.run(WORDS, root=tmp_path, progress=False, observers=[notebook])
    assert notebook.told == [
        ("start", "run", 2, True),
        ("note", "1 worker: training takes about 0 s, too short for another process to pay"),
        *[("round", number, status) for number, status in ((0, "initial"), (1, "ok"), (2, "ok"))],
        ("end", "finished"),
    ]


def test_when_a_round_is_told_its_row_is_on_disk(tmp_path):
    class Reader(Observer):
        lines = ()

        def on_run_start(self, run):
            self.folder = run.folder

        def on_round(self, row):
            self.lines = (*self.lines, len((self.folder / "rounds.jsonl").read_text().splitlines()))

    reader = Reader()
    fedq.run(WORDS, root=tmp_path, progress=False, observers=[reader])
    assert reader.lines == (1, 2, 3)


def test_an_observer_that_raises_is_reported_once_and_changes_no_bit(tmp_path, caplog):
    notebook = Notebook()
    with caplog.at_level(logging.WARNING, logger="fedq"):
        watched = fedq.run(WORDS, root=tmp_path, progress=False, observers=[Broken(), notebook])
    assert [r.getMessage() for r in caplog.records] == ["observer Broken is left out: RuntimeError: no disk"]
    assert notebook.told[-1] == ("end", "finished")
    alone = fedq.run(WORDS, root=tmp_path, progress=False)
    assert all((watched.arrays[name] == alone.arrays[name]).all() for name in alone.arrays)


def test_the_end_is_told_where_a_run_fails():
    notebook = Notebook()
    watchers = Observers([notebook])
    with pytest.raises(KeyboardInterrupt), watchers.watching(RunStart("run", 1, "", "accuracy", None, Path())):
        raise KeyboardInterrupt
    assert notebook.told[-1] == ("end", None)


def test_why_clients_were_lost_is_noted_the_first_time(four_rounds):
    notebook = Notebook()
    watchers = Observers([notebook])
    for row in four_rounds:
        watchers.on_round(row)
    notes = [told[1] for told in notebook.told if told[0] == "note"]
    assert [note.split(",")[0] for note in notes] == ["round 2: 10 lost", "round 4: 1 lost"]
