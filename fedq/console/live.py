"""The live display as an observer, and `fedq.run`, which runs an experiment with it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedq.console.display import Display
from fedq.results import Result, RoundRow
from fedq.runtime import OUTPUTS, Observer, RunStart, run_observed


class LiveView(Observer):
    """Shows one row for each round in a terminal. Without a terminal it prints only notes, if `notes_to_log`."""

    def __init__(self, *, notes_to_log: bool = False) -> None:
        self._notes_to_log = notes_to_log
        self._display: Display | None = None

    def on_run_start(self, run: RunStart) -> None:
        self._display = Display(
            run.name, rounds=run.rounds, detail=run.detail, epsilon_budget=run.epsilon_budget, metric=run.metric
        )
        self._display.__enter__()

    def on_replies(self, done: int, expected: int) -> None:
        if self._display is not None:
            self._display.replies(done, expected)

    def on_round(self, row: RoundRow) -> None:
        if self._display is not None:
            self._display.row(row)

    def on_note(self, text: str) -> None:
        if self._notes_to_log and not sys.stderr.isatty():
            print(f"fedq: {text}", file=sys.stderr, flush=True)
        elif self._display is not None:
            self._display.note(text)

    def on_run_end(self, result: Result | None) -> None:
        if self._display is not None:
            self._display.__exit__(None, None, None)


def run(
    overrides: Sequence[str] = (),
    *,
    model: Any = None,
    data: Any = None,
    root: str | Path = OUTPUTS,
    progress: bool = True,
    observers: Sequence[Observer] = (),
) -> Result:
    """Run one experiment and return its result; raises `ConfigError` before anything starts.

    `overrides` are those of `fedq run`. `model` (a class or function that returns an `nn.Module`) and `data` (a
    function, or what it returns) may be objects of the calling script or notebook. Files go under `root`.
    The live display needs a terminal and `progress=True`; `observers` are called for every round too.

    >>> import fedq, tempfile
    >>> result = fedq.run(["rounds=1", "clients=2"], root=tempfile.mkdtemp(), progress=False)
    >>> result.accuracy_source, result.rounds
    ('server_test', 1)
    """
    views = [LiveView()] if progress else []
    return run_observed(overrides, model=model, data=data, root=root, observers=[*views, *observers])
