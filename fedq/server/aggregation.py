"""From the checked packets of a round to the mean of each: decoded, bounded, summed exactly or aggregated robustly.
Depends on the codec, the bounds and the aggregates; does not know messages or the model.

An update is summed as it comes, unless the whole round is needed first: for an aggregate of all updates, and for a
bound that no earlier round gives. Then its packets are held, in a worker process too, and `settle` does the rest.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedq.algorithms import UPDATE, Uplink
from fedq.codec import Accumulator, Codec, MalformedUpdate, decode, packet_codec
from fedq.codec.accumulator import checked_weight
from fedq.privacy import l2_norm
from fedq.server.bounding import Bound, MedianBound, shortened
from fedq.server.robust import Aggregate, aggregated
from fedq.server.round_aggregate import Held, Rejected, RoundAggregate
from fedq.server.weighing import Weighing

Vectors = dict[str, NDArray[np.float32]]  # packet name -> decoded values
Limits = Mapping[str, float]  # packet name -> largest reach of a round, as far as it is known


class Aggregation(Protocol):
    """How the packets of a round become one mean each. `Averaging` here, `ClientLevelSum` where the server adds noise.

    The server's process asks for `limits` and hands them to workers with the round.
    """

    keeps_metrics: bool  # whether losses and metrics of clients may be used

    def limits(self) -> dict[str, float]: ...

    def weight_of(self, client: str, num_examples: float | None) -> tuple[float, bool]:
        """The client's weight, and whether it was capped."""

    def add(
        self,
        total: RoundAggregate,
        client: str,
        packets: Mapping[str, bytes],
        weight: float,
        *,
        round: int,
        base: bytes,
        limits: Limits,
    ) -> None:
        """Take one client's packets into the round. MalformedUpdate where one does not decode: nothing has changed."""

    def settle(self, total: RoundAggregate, limits: Limits) -> None:
        """Aggregate what was held, now that the round is complete."""

    def mean(self, total: RoundAggregate, name: str, *, round: int) -> NDArray[np.float32]:
        """The mean of the packets of that name, float32, shape (total.layout.size,)."""

    def note(self, total: RoundAggregate) -> None:
        """A round whose step was taken."""


class Averaging:
    """The weighted mean, exact to the bit in any order; or a robust aggregate. `bound`: makes one run's `Bound`."""

    keeps_metrics = True

    def __init__(
        self,
        codec: Codec,
        uplink: Sequence[Uplink] = (Uplink(UPDATE),),
        *,
        weighing: Weighing | None = None,
        bound: Callable[[], Bound] | None = None,
        aggregate: Aggregate | None = None,
    ) -> None:
        self._codecs = {packet.name: packet_codec(packet.name, codec) for packet in uplink}
        self._plain = {packet.name for packet in uplink if not packet.weighted}
        self._weighing, self._aggregate = weighing or Weighing(), aggregate
        # Of other packets no public length is known: each has a bound of its own, by the median.
        self._bounds: dict[str, Bound] = {}
        if bound is not None:
            self._bounds = {p.name: bound() if p.name == UPDATE else MedianBound() for p in uplink}

    def limits(self) -> dict[str, float]:
        """The largest reach of each packet in the next round; a name is missing where it is not known yet."""
        found = {name: bound.limit() for name, bound in self._bounds.items()}
        return {name: limit for name, limit in found.items() if limit is not None}

    def weight_of(self, client: str, num_examples: float | None) -> tuple[float, bool]:
        return self._weighing.of(client, num_examples)

    def add(
        self,
        total: RoundAggregate,
        client: str,
        packets: Mapping[str, bytes],
        weight: float,
        *,
        round: int,
        base: bytes,
        limits: Limits,
    ) -> None:
        checked_weight(weight)  # at once, also where the update is held
        if not self._bounds and self._aggregate is None and len(packets) == 1:
            for name, data in packets.items():
                sums = total.sums.setdefault(name, Accumulator(total.layout))
                sums.add(data, self._own(name, weight), round=round, base=base, kind="delta", codec=self._codecs[name])
            return
        vectors = {
            name: decode(data, total.layout, round=round, base=base, kind="delta", codec=self._codecs[name])
            for name, data in packets.items()
        }
        reaches = {name: self._reach(name, vectors[name], weight, round) for name in self._bounds}
        held = Held(client, dict(packets), weight, reaches)
        if self._aggregate is not None or set(self._bounds) - set(limits):
            total.held.append(held)
        else:
            self._sum(total, held, vectors, limits)

    def settle(self, total: RoundAggregate, limits: Limits) -> None:
        """An update that the sums cannot take is rejected."""
        held, total.held = sorted(total.held, key=lambda one: one.client), []
        if not held:
            return
        found = {
            name: limits[name] if name in limits else bound.limit_among([one.reaches[name] for one in held])
            for name, bound in self._bounds.items()
        }
        if self._aggregate is None:
            for one in held:
                try:
                    self._sum(total, one, {n: decode(data, total.layout) for n, data in one.packets.items()}, found)
                except MalformedUpdate as error:
                    total.reject(Rejected(one.client, f"packet_{error.reason}"))
            return

        def updates(name: str) -> Iterator[NDArray[np.float32]]:
            for one in held:
                vector = decode(one.packets[name], total.layout)
                yield shortened(vector, reach=one.reaches.get(name, 0.0), limit=found.get(name, math.inf))

        for name in held[0].packets:
            total.aggregates[name] = aggregated(updates(name), self._aggregate, count=len(held), size=total.layout.size)
        for one in held:
            total.note_reaches(one.client, one.reaches, found)

    def mean(self, total: RoundAggregate, name: str, *, round: int) -> NDArray[np.float32]:
        return total.sums[name].mean() if self._aggregate is None else total.aggregates[name]

    def note(self, total: RoundAggregate) -> None:
        """The bounds of later rounds follow from these updates."""
        for name, bound in self._bounds.items():
            bound.note([reach for _, reach in sorted(total.reaches.get(name, []))])

    def _reach(self, name: str, vector: NDArray[np.float32], weight: float, round: int) -> float:
        own = self._own(name, weight)
        return self._bounds[name].reach(l2_norm(vector), own, round)

    def _sum(self, total: RoundAggregate, held: Held, vectors: Vectors, limits: Limits) -> None:
        short = {
            name: shortened(vector, reach=held.reaches.get(name, 0.0), limit=limits.get(name, math.inf))
            for name, vector in vectors.items()
        }
        sums = {name: total.sums.setdefault(name, Accumulator(total.layout)) for name in short}
        for name in list(short)[1:]:  # all or none: the first sum must not keep what another refuses
            sums[name].check_vector(short[name], self._own(name, held.weight))
        for name, vector in short.items():
            sums[name].add_vector(vector, self._own(name, held.weight))
        total.note_reaches(held.client, held.reaches, limits)

    def _own(self, name: str, weight: float) -> float:
        """The weight of one packet of a client of this weight."""
        return 1.0 if name in self._plain else weight
