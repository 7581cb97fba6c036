"""One round at the server: broadcast, check the replies, aggregate, step. Depends on wire, codec and an algorithm.

`fedq.server.run_rounds` calls these parts, and so do the two classes that run inside Flower's own loop: `flower_loop`
for fedq's clients, and `adapter` for the clients of another app. All three give the same bits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Message

from fedq import codec as packets
from fedq.algorithms import Algorithm, FedAvg, State
from fedq.flower import wire
from fedq.server.aggregation import Aggregation, Averaging
from fedq.server.broadcast import Broadcast, Broadcaster, Downlink, downlink_for
from fedq.server.optimizer import ServerOptimizer
from fedq.server.pruning import Pruner, Pruning
from fedq.server.roster import Roster
from fedq.server.round_aggregate import Accepted, Rejected, RoundAggregate


@dataclass(frozen=True)
class Terms:
    """What a round asks of its clients, and what their replies must look like.

    `private`: under DP a reply that carries anything but its packets is rejected. `holdout`: share of its examples that
    each client keeps to evaluate on. `clients`: how many there are in all. `timeout` in seconds.
    """

    seed: int = 0
    min_clients: int = 1
    clients: int = 1
    private: bool = False
    holdout: float = 0.0
    timeout: float = 3600.0
    version: str = ""


class Strategy:
    """The server's side of an algorithm over quantized packets.

    The global model stays float32 at the server. What clients get is `encode(model)`, or the changes since what they
    hold; what they return, in `codec`, is their change against what they decoded, so the rounding of the broadcast
    never accumulates. `downlink`: how the model is sent; None: in `codec` where that is fine enough for weights, else
    in int8. `pruning`: which weights become zero, and stay so; packets then carry the others alone.
    """

    # pragma: no mutate start   `make mutants` is about the checks of replies: `collect` and `_checked`
    def __init__(
        self,
        layout: packets.Layout,
        codec: packets.Codec | str = "int8",
        *,
        algorithm: Algorithm | None = None,
        downlink: Downlink | None = None,
        optimizer: ServerOptimizer | None = None,
        aggregation: Aggregation | None = None,
        pruning: Pruning | None = None,
        terms: Terms | None = None,
    ) -> None:
        if not isinstance(layout, packets.Layout):
            raise ValueError(f"layout={layout!r}: must be a fedq.codec.Layout")
        self.layout, self.codec = layout, packets.as_codec(codec)
        self.algorithm: Algorithm = algorithm or FedAvg()
        self.downlink = downlink or downlink_for(self.codec)
        if pruning is not None and self.downlink.kind == "delta":
            raise ValueError("downlink.kind=delta with pruning: changes are against values that are gone; use weights")
        self.aggregation: Aggregation = aggregation or Averaging(self.codec, self.algorithm.uplink)
        if not self.aggregation.keeps_metrics and self.downlink.kind == "delta":
            raise ValueError(
                "downlink.kind=delta with client-level DP: it shows whose update was accepted; use weights"
            )
        self.terms = terms or Terms()
        self._optimizer = optimizer or ServerOptimizer()
        self._state = self.algorithm.server_state(layout.size)
        self._last_accepted: dict[str, int] = {}
        self._broadcaster = Broadcaster(layout, self.downlink, seed=self.terms.seed)
        self._pruner = None if pruning is None else Pruner(layout, pruning)

    @property
    def state(self) -> State:
        """The algorithm's vectors at the server."""
        return self._state

    @property
    def sparsity(self) -> float | None:
        """Share of the prunable weights that are zero for good by now; None where nothing is ever pruned."""
        return None if self._pruner is None else self._pruner.sparsity

    @property
    def settled(self) -> bool:
        """Whether the target sparsity is reached."""
        return self._pruner is None or self._pruner.settled

    @property
    def kept(self) -> packets.MaskedLayout:
        """Which weights are sent, both ways, until the next are pruned."""
        return packets.MaskedLayout(self.layout) if self._pruner is None else self._pruner.kept

    def broadcast(self, master: np.ndarray, round: int, cohort: Sequence[str]) -> Broadcast:
        """What the clients of the round get; a packet is encoded once, for all that it goes to."""
        made = self._broadcaster.make(master, round, cohort, self.kept)
        vectors = {name: self._state[name] for name in self.algorithm.downlink}
        beside = self._broadcaster.beside(vectors, round, made.base, self.kept)
        return replace(made, beside=beside, limits=self.aggregation.limits())

    def snapshot(self, master: np.ndarray, round: int) -> Broadcast:
        """The model in one packet, for clients that evaluate."""
        return self._broadcaster.whole(master, round, self.kept)

    def last_accepted(self, cohort: Sequence[str]) -> dict[str, int]:
        """Client -> last round whose update of it was accepted; -1: none. A client's own state depends on it."""
        return {client: self._last_accepted.get(client, -1) for client in cohort}

    def messages(
        self,
        round: int,
        broadcast: Broadcast,
        accepted: Mapping[str, int],
        roster: Roster,
        *,
        task: str = wire.TRAIN,
    ) -> list[Message]:
        """One request for each client in `accepted`; `task`: `wire.TRAIN` or `wire.EVALUATE`."""
        return [
            Message(
                wire.write_request(wire.Request(round, last, broadcast.packets(client), self.terms.holdout)),
                dst_node_id=roster.nodes[client],
                message_type=task,
            )
            for client, last in accepted.items()
        ]

    # pragma: no mutate end
    def collect(
        self,
        round: int,
        replies: Iterable[Message],
        cohort: Sequence[str],
        roster: Roster,
        broadcast: Broadcast,
        *,
        task: str = wire.TRAIN,
    ) -> RoundAggregate:
        """Check and aggregate replies as they come. A rejected reply contributes only a reason code."""
        total = RoundAggregate(broadcast.kept(self.layout, round).layout)
        waiting = set(cohort)
        for message in replies:
            client = roster.identity_of(message.metadata.src_node_id)
            if client is None or client not in cohort:
                total.rejected.append(Rejected(client or str(message.metadata.src_node_id), "unknown_node"))
                continue
            if client not in waiting:
                total.rejected.append(Rejected(client, "duplicate"))
                continue
            waiting.discard(client)
            try:
                reply = self._checked(message, round, task)
                weight, capped = self.aggregation.weight_of(client, reply.num_examples)
                if reply.packets:
                    self.aggregation.add(
                        total,
                        client,
                        reply.packets,
                        weight,
                        round=round,
                        base=broadcast.base,
                        limits=broadcast.limits,
                    )
                if not self.aggregation.keeps_metrics:
                    reply = replace(reply, loss=None, metric=None, counts=None)
                right, wrong = reply.counts or (None, None)
                total.accepted.append(Accepted(client, weight, reply.loss, reply.metric, right, wrong))
                total.capped += [client] * capped
            except (wire.MalformedReply, packets.MalformedUpdate) as error:
                codec_says = isinstance(error, packets.MalformedUpdate)
                total.rejected.append(Rejected(client, f"packet_{error.reason}" if codec_says else error.reason))
        total.rejected += [Rejected(client, "no_reply") for client in waiting]
        total.accepted.sort(key=lambda a: a.client)
        total.rejected.sort(key=lambda r: (r.client, r.reason))
        total.capped.sort()
        return total

    def _checked(self, message: Message, round: int, task: str) -> wire.Reply:
        if message.has_error():
            raise wire.MalformedReply(wire.reason_of(message.error.reason), "Flower's error reply")
        reply = self._read(message, round, task)
        if isinstance(reply, wire.Refusal):
            raise wire.MalformedReply(reply.reason, "the client refused")
        return reply

    def _read(self, message: Message, round: int, task: str) -> wire.Reply | wire.Refusal:
        """The reply of a client of fedq's own."""
        training = task == wire.TRAIN
        metrics = {"num_examples", "loss"} if training else {"num_examples", "loss", "metric"}
        return wire.read_reply(
            message.content,
            round=round,
            packets=frozenset(packet.name for packet in self.algorithm.uplink) if training else frozenset(),
            metrics=frozenset(() if self.terms.private else metrics),
            counts=self.terms.private and not training,
        )

    # pragma: no mutate start
    def settle(self, total: RoundAggregate, broadcast: Broadcast) -> RoundAggregate:
        """The round complete: what had to wait for all of its updates is done now, in the server's own process."""
        self.aggregation.settle(total, broadcast.limits)
        return total

    def step(self, round: int, master: np.ndarray, total: RoundAggregate) -> np.ndarray:
        """The next global model, and a note of whose update counted: their next request says so."""
        means = {
            packet.name: self.kept.scatter(self.aggregation.mean(total, packet.name, round=round))
            for packet in self.algorithm.uplink
        }
        participation = len(total.accepted) / max(self.terms.clients, len(total.accepted))
        pseudo_gradient, self._state = self.algorithm.server_update(means, self._state, participation=participation)
        stepped = self.prune(round, self._optimizer.step(master, pseudo_gradient))
        self.aggregation.note(total)
        self._last_accepted.update({a.client: round for a in total.accepted})
        return stepped

    def prune(self, round: int, master: np.ndarray) -> np.ndarray:
        """The model after a round, with what is pruned by then at 0.0, whatever the server optimizer made of it."""
        return master if self._pruner is None else self._pruner.after(round, master)

    def note(self, round: int, asked: Iterable[str], answered: Iterable[str]) -> None:
        """Who was asked, and who has surely read the broadcast of the round, whether the round counts or not."""
        self._broadcaster.note(round, asked, answered)

    # pragma: no mutate end
