"""How far one update may move the model: the bound on its length. Knows lengths and weights; not packets or clients.

A bound is compared with an update's reach: its norm, where weights are known to be right, and weight times norm, which
is what it adds to the weighted sum, where clients state their own: then a large weight and a long update together
gain nothing over either alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Of the median reach. By measurement (docs/threat-model.md): honest updates stay below it, and one client of ten that
# sends the longest update which passes costs under three points.
MULTIPLE = 2.0
# Where noise of a public size makes up most of every update, their lengths hardly differ.
MULTIPLE_OF_NOISE = 1.25
_ROUNDS, _UPDATES = 5, 30  # the history: so many rounds, or more of them until there are so many updates


class Bound(Protocol):
    """A rule for the longest update of a round. The server's process asks it; workers get the limit with the round."""

    def limit(self) -> float | None:
        """The largest reach of the next round; None: it is known only once the round's own updates are there."""

    def limit_among(self, reaches: Sequence[float]) -> float:
        """The limit of such a round, from the reaches of its updates."""

    def reach(self, norm: float, weight: float, round: int) -> float:
        """What the limit is about."""

    def note(self, reaches: Sequence[float]) -> None:
        """The reaches of a round's accepted updates, before any was shortened."""


class NormBound:
    """A largest L2 norm, the same in every round."""

    def __init__(self, norm: float) -> None:
        self._norm = norm

    def limit(self) -> float:
        return self._norm

    def limit_among(self, reaches: Sequence[float]) -> float:
        return self._norm

    def reach(self, norm: float, weight: float, round: int) -> float:
        return norm

    def note(self, reaches: Sequence[float]) -> None:
        """The norm does not follow the updates."""


class MedianBound:
    """A small multiple of the median norm, over the accepted updates of the last rounds.

    What enters is the reach before shortening, so the bound follows the updates up as well as down; a minority of
    clients cannot move a median beyond what others sent. Until an update came, a round is bounded by its own median.

    `unit`: public length of an update in a round, such as its learning rate, in which reaches are measured: so they
    compare across rounds. `most`: a reach, in that unit, beyond which no update goes, whatever the median.
    """

    def __init__(
        self,
        multiple: float = MULTIPLE,
        *,
        unit: Callable[[int], float] = lambda round: 1.0,
        most: float = math.inf,
    ) -> None:
        self._multiple, self._unit, self._most = multiple, unit, most
        self._history: list[list[float]] = []  # newest last

    def limit(self) -> float | None:
        known = [reach for reaches in self._history for reach in reaches]
        if known:
            return self.limit_among(known)
        return self._most if math.isfinite(self._most) else None

    def limit_among(self, reaches: Sequence[float]) -> float:
        moving = _moving(reaches)
        return min(self._most, self._multiple * lower_median(moving)) if moving else self._most

    def reach(self, norm: float, weight: float, round: int) -> float:
        return norm / self._unit(round)

    def note(self, reaches: Sequence[float]) -> None:
        moving = _moving(reaches)
        if moving:
            self._history.append(moving)
        while len(self._history) > _ROUNDS and sum(map(len, self._history[1:])) >= _UPDATES:
            del self._history[0]


class MedianPull(MedianBound):
    """The same of weight times norm, where each client states its own weight."""

    def reach(self, norm: float, weight: float, round: int) -> float:
        return weight * super().reach(norm, weight, round)


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
