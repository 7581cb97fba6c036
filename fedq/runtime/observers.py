"""Observers of a run: the live view, trackers, and other code that follows the rounds. Depends on result rows only."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedq.config import Config, rules
from fedq.config.client_level import epsilon_budget
from fedq.flower import wire
from fedq.results import Result, RoundRow
from fedq.runtime.headline import headline

LOG = logging.getLogger("fedq")


@dataclass(frozen=True)
class RunStart:
    """What is known about a run before its first round. `folder`: its files; None if they are on another machine."""

    name: str
    rounds: int
    detail: str  # the configuration in one line
    metric: str
    epsilon_budget: float | None
    folder: Path | None
    config: Mapping[str, Any] = field(default_factory=dict)  # the result of `rules.identity`

    @classmethod
    def of(cls, config: Config, folder: Path | None, *, where: str = "") -> "RunStart":
        """The start of a run with this config; `where`: the machine, if it is not this one."""
        detail = f"{headline(config)}, on {where}" if where else headline(config)
        budget = epsilon_budget(config)
        return cls(config.name, config.rounds, detail, config.train.metric, budget, folder, rules.identity(config))


class Observer:
    """Base class: override the methods that you need. They are called in the server's process, between rounds.

    An observer sees rows and the result, never data, updates or models, and cannot change the run.
    """

    def on_run_start(self, run: RunStart) -> None:
        """Called before the first round."""

    def on_replies(self, done: int, expected: int) -> None:
        """Called within a round: how many of the asked clients have answered."""

    def on_round(self, row: RoundRow) -> None:
        """Called after a round, when its row is on disk."""

    def on_note(self, text: str) -> None:
        """Called with one line of text that a person should know."""

    def on_run_end(self, result: Result | None) -> None:
        """Called after the run, when its files are written; None if it ended with an error."""


class Observers(Observer):
    """Several observers as one. An observer that raises is reported once and then left out; it never ends the run."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers, self._known = list(observers), set[str]()

    def on_run_start(self, run: RunStart) -> None:
        self._tell(lambda observer: observer.on_run_start(run))

    def on_replies(self, done: int, expected: int) -> None:
        self._tell(lambda observer: observer.on_replies(done, expected))

    def on_round(self, row: RoundRow) -> None:
        """Pass on the row, after a note for each reason for which clients were lost for the first time."""
        for reason in sorted(set(row.reasons) - self._known):
            meaning = {**wire.REFUSALS, **wire.REJECTIONS}.get(reason, "a packet that does not decode")
            self.on_note(f"round {row.round}: {row.reasons[reason]} lost, {reason}: {meaning}")
        self._known |= set(row.reasons)
        self._tell(lambda observer: observer.on_round(row))

    def on_note(self, text: str) -> None:
        self._tell(lambda observer: observer.on_note(text))

    def on_run_end(self, result: Result | None) -> None:
        self._tell(lambda observer: observer.on_run_end(result))

    @contextmanager
    def watching(self, run: RunStart) -> Iterator[Callable[[Result], Result]]:
        """A context around a run that reports its start and its end. Call the yielded function with the result."""
        ended: list[Result] = []

        def end(result: Result) -> Result:
            ended.append(result)
            return result

        self.on_run_start(run)
        try:
            yield end
        finally:
            self.on_run_end(ended[0] if ended else None)

    def _tell(self, tell: Callable[[Observer], None]) -> None:
        for observer in list(self._observers):
            try:
                tell(observer)
            except Exception as error:
                self._observers.remove(observer)
                LOG.warning("observer %s is left out: %s: %s", type(observer).__name__, type(error).__name__, error)
