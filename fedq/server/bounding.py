"""How far one update may move the model: the bound on its length. Knows lengths and weights; not packets or clients.

A bound is compared with an update's reach. For a given norm the reach is the update's norm. For the median rule it is
weight times norm, which is what the update adds to the weighted sum: a client that uses a large weight and a long
update together gains nothing over one that uses either.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Of the median reach. Measured in docs/threat-model.md: honest updates stay below it, and one client of ten that sends
# the longest update which passes costs under three points.
MULTIPLE = 2.0
_ROUNDS, _UPDATES = 5, 30  # the history: so many rounds, or more of them until there are so many updates


class Bound(Protocol):
    """A rule for the longest update of a round. The server's process asks it; workers get the limit with the round."""

    def limit(self, round: int) -> float | None:
        """The largest reach of this round; None: it is known only once the round's own updates are there."""

    def limit_among(self, reaches: Sequence[float]) -> float:
        """The limit of such a round, from the reaches of its updates."""

    def reach(self, norm: float, weight: float) -> float:
        """What the limit is about."""

    def note(self, reaches: Sequence[float]) -> None:
        """The reaches of a round's accepted updates, before any was shortened."""


class NormBound:
    """A largest L2 norm that is known before the round: a number, or a public function of the round."""

    def __init__(self, norm: Callable[[int], float]) -> None:
        self._norm = norm

    def limit(self, round: int) -> float:
        return self._norm(round)

    def limit_among(self, reaches: Sequence[float]) -> float:
        raise RuntimeError("a norm that is known before the round needs no updates; please report this bug")

    def reach(self, norm: float, weight: float) -> float:
        return norm

    def note(self, reaches: Sequence[float]) -> None:
        """The norm does not follow the updates."""


class MedianBound:
    """A small multiple of the median of weight times norm, over the accepted updates of the last rounds.

    What enters is the reach before shortening, so the bound follows the updates up as well as down; a minority of
    clients cannot move a median beyond what others sent. Until an update came, a round is bounded by its own median.
    """

    def __init__(self, multiple: float = MULTIPLE) -> None:
        self._multiple = multiple
        self._history: list[list[float]] = []  # newest last

    def limit(self, round: int) -> float | None:
        known = [reach for reaches in self._history for reach in reaches]
        return self._multiple * lower_median(known) if known else None

    def limit_among(self, reaches: Sequence[float]) -> float:
        moving = _moving(reaches)
        return self._multiple * lower_median(moving) if moving else 0.0

    def reach(self, norm: float, weight: float) -> float:
        return weight * norm

    def note(self, reaches: Sequence[float]) -> None:
        moving = _moving(reaches)
        if moving:
            self._history.append(moving)
        while len(self._history) > _ROUNDS and sum(map(len, self._history[1:])) >= _UPDATES:
            del self._history[0]


def lower_median(values: Sequence[float]) -> float:
    """The middle value, the smaller of two: always one of the values, and an honest one where most are."""
    return sorted(values)[(len(values) - 1) // 2]


def shortened(update: NDArray[np.float32], *, reach: float, limit: float) -> NDArray[np.float32]:
    """The update, scaled down where it reaches beyond the limit."""
    if reach <= limit:
        return update
    with np.errstate(under="ignore"):
        return np.multiply(update, limit / reach, dtype=np.float64).astype(np.float32)


def _moving(reaches: Sequence[float]) -> list[float]:
    """Without the updates that are zero: they say nothing of length, and would let a few lower the bound."""
    return [reach for reach in reaches if reach > 0]
