"""The way to clients over any Flower grid: who is there, and one round there and back. Not how the grid carries it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Message

from fedq.flower import wire
from fedq.server.broadcast import Broadcast
from fedq.server.meter import Meter
from fedq.server.roster import Exchange, Roster, grid_exchange
from fedq.server.round_aggregate import RoundAggregate, Traffic
from fedq.server.strategy import Strategy

Replied = Callable[[int, int], None]  # told after each reply: how many came, how many are expected


def nobody(done: int, expected: int) -> None:
    """A `Replied` that ignores replies."""


class GridLink:
    """Sends the requests of a round, counts every message both ways, and folds replies as they come.

    `greet` fills the roster, given the way to send; `roster` may also be known beforehand.
    """

    def __init__(
        self,
        strategy: Strategy,
        grid: Any,
        greet: Callable[[Exchange], Roster],
        *,
        roster: Roster | None = None,
        replied: Replied = nobody,
    ) -> None:
        self._strategy, self._greet, self._replied = strategy, greet, replied
        self._roster = roster or Roster()
        self._meter = Meter(strategy.layout)
        self._exchange = counted(grid_exchange(grid), self._meter)

    def close(self) -> None:
        """Nothing of the server's runs between calls."""

    def meet(self) -> tuple[Roster, Traffic]:
        self._roster = self._greet(self._exchange)
        return self._roster, self._meter.take()

    def gather(
        self,
        round: int,
        broadcast: Broadcast,
        accepted: Mapping[str, int],
        *,
        task: str = wire.TRAIN,
    ) -> RoundAggregate:
        strategy = self._strategy
        messages = strategy.messages(round, broadcast, accepted, self._roster, task=task)
        replies = self._told(self._exchange(messages, strategy.terms.timeout), len(messages))
        total = strategy.collect(round, replies, list(accepted), self._roster, broadcast, task=task)
        total.traffic.add(self._meter.take())
        return total

    def outputs(self, weights: np.ndarray, part: str) -> np.ndarray | None:
        """None: clients compute nothing on the server's examples."""
        return None

    def _told(self, replies: Iterable[Message], expected: int) -> Iterator[Message]:
        for done, reply in enumerate(replies, start=1):
            yield reply
            self._replied(done, expected)


def counted(exchange: Exchange, meter: Meter) -> Exchange:
    """The same way to send, with every message measured as it passes."""

    def sent(messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            meter.down(message)
            yield message

    def exchanged(messages: Iterable[Message], timeout: float) -> Iterator[Message]:
        for reply in exchange(sent(messages), timeout):
            meter.up(reply)
            yield reply

    return exchanged
