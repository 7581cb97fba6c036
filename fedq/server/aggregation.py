"""From checked packets to the round's mean update: decoded, bounded, then summed exactly or aggregated robustly.
Knows the codec, the bound and the aggregate; not messages, weights of clients or the model.

An update is summed as it comes, unless the whole round is needed first: for an aggregate of all updates, and for a
bound that no earlier round gives. Then its packets are held, in a worker process too, and `settle` does the rest.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fedq.codec import Accumulator, Codec, MalformedUpdate, decode
from fedq.codec.accumulator import checked_weight
from fedq.privacy import clipped, l2_norm
from fedq.server.bounding import Bound, shortened
from fedq.server.robust import Aggregate, aggregated
from fedq.server.round_aggregate import Held, Rejected, RoundAggregate

Vectors = dict[str, NDArray[np.float32]]  # packet name -> decoded values


class Aggregation:
    """The rules of one run, and what they have seen of the lengths of updates."""

    def __init__(self, codec: Codec, *, bound: Bound | None = None, aggregate: Aggregate | None = None) -> None:
        self._codec, self._bound, self._aggregate = codec, bound, aggregate

    def limit(self) -> float | None:
        """The largest reach of an update in the next round; None: there is no bound, or it is not known yet."""
        return None if self._bound is None else self._bound.limit()

    def add(
        self,
        total: RoundAggregate,
        client: str,
        update: Mapping[str, bytes],
        weight: float,
        *,
        round: int,
        base: bytes,
        limit: float | None,
    ) -> None:
        """Take one client's packets into the round. MalformedUpdate where one does not decode: nothing has changed."""
        checked_weight(weight)  # at once, also where the update is held
        if self._bound is None and self._aggregate is None:
            for name, data in update.items():
                sums = total.sums.setdefault(name, Accumulator(total.layout))
                sums.add(data, weight, round=round, base=base, kind="delta", codec=self._codec)
            return
        vectors = {
            name: decode(data, total.layout, round=round, base=base, kind="delta", codec=self._codec)
            for name, data in update.items()
        }
        norm = math.sqrt(sum(l2_norm(vector) ** 2 for vector in vectors.values()))
        reach = 0.0 if self._bound is None else self._bound.reach(norm, weight, round)
        held = Held(client, dict(update), weight, reach)
        if self._aggregate is not None or limit is None:
            total.held.append(held)
        else:
            _sum(total, held, vectors, limit)

    def settle(self, total: RoundAggregate, limit: float | None) -> None:
        """Aggregate what was held, now that the round is complete. An update that the sums cannot take is rejected."""
        held, total.held = sorted(total.held, key=lambda one: one.client), []
        if not held:
            return
        if limit is None:
            limit = math.inf if self._bound is None else self._bound.limit_among([one.reach for one in held])
        if self._aggregate is None:
            for one in held:
                try:
                    _sum(total, one, {name: decode(data, total.layout) for name, data in one.update.items()}, limit)
                except MalformedUpdate as error:
                    total.reject(Rejected(one.client, f"packet_{error.reason}"))
            return

        def updates(name: str) -> Iterator[NDArray[np.float32]]:
            for one in held:
                yield shortened(decode(one.update[name], total.layout), reach=one.reach, limit=limit)

        for name in held[0].update:
            total.aggregates[name] = aggregated(updates(name), self._aggregate, count=len(held), size=total.layout.size)
        for one in held:
            total.note_reach(one.client, one.reach, limit)

    def mean(self, total: RoundAggregate, name: str) -> NDArray[np.float32]:
        """The mean of the round's updates, by whichever rule."""
        return total.sums[name].mean() if self._aggregate is None else total.aggregates[name]

    def note(self, total: RoundAggregate) -> None:
        """A round whose step was taken: the bounds of later rounds follow from its updates."""
        if self._bound is not None:
            self._bound.note([reach for _, reach in sorted(total.reaches)])


def add_clipped(
    total: RoundAggregate, update: Mapping[str, bytes], *, clip_norm: float, codec: Codec, round: int, base: bytes
) -> None:
    """Add one client's packets where whole clients are protected: clipped as decoded, and of weight 1."""
    for name, data in update.items():
        vector = decode(data, total.layout, round=round, base=base, kind="delta", codec=codec)
        short, within = clipped(vector, clip_norm)
        total.sums.setdefault(name, Accumulator(total.layout)).add_vector(short)
        total.note_clip(clip_norm, within)


def _sum(total: RoundAggregate, held: Held, vectors: Vectors, limit: float) -> None:
    for name, vector in vectors.items():
        sums = total.sums.setdefault(name, Accumulator(total.layout))
        sums.add_vector(shortened(vector, reach=held.reach, limit=limit), held.weight)
    total.note_reach(held.client, held.reach, limit)
