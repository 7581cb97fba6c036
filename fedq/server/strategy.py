"""Federated averaging of packets: send, check, decode, sum exactly, step. Knows wire and codec; not models or data.

One class, two ways to run it: `fedq.server.run_rounds` drives its parts and can resume, stop early and let
worker processes pre-sum; Flower's own `strategy.start(grid)` calls `configure_train` and `aggregate_train`, which are
the same parts in the same order, so both give the same bits. Without a layout the clients are another app's, and
`guest` stands between its records and those parts.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedq import codec as packets
from fedq.codec.accumulator import GRID, LARGEST_WEIGHT
from fedq.core.compiler import without_compiler
from fedq.flower import wire
from fedq.privacy import ClientLevelMechanism, ClientLevelPlan
from fedq.server.aggregation import Aggregation, add_clipped
from fedq.server.bounding import Bound, MedianPull
from fedq.server.broadcast import Broadcast, Broadcaster, Downlink, downlink_for
from fedq.server.guest import Guest, check_options
from fedq.server.options import check_layout, check_together
from fedq.server.pruning import Pruner, Pruning
from fedq.server.robust import Aggregate
from fedq.server.roster import Roster, grid_exchange, say_hello
from fedq.server.round_aggregate import Accepted, Rejected, RoundAggregate
from fedq.server.sampling import CyclicSampler
from fedq.server.weighing import Weighing

Optimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


class QuantizedFedAvg(FedAvg):
    """FedAvg over quantized packets (arXiv:1602.05629), with a server optimizer (arXiv:2003.00295).

    The master copy stays float32 at the server. What clients get is `encode(master)`, or the changes since what they
    hold; what they return, in `codec`, is their change against what they decoded, so the rounding of the broadcast
    never accumulates. `downlink`: how the model is sent; None: in `codec` where that is fine enough for weights, else
    in int8.

    `statistics` names averaged segments that are no parameters (running means, observed ranges): they take the
    plain mean whatever the server optimizer. Under DP (`private=True`) all weights are equal, and a reply that carries
    anything but its packet is dropped. `holdout`: share of its examples that each client keeps to evaluate on.
    `pruning`: which weights become zero, and stay so; packets then carry the others alone.
    `client_level`: updates are clipped after decoding, and each round's sum is noised by the mechanism that `protect`
    was given, whatever came back: clients as a whole are protected. Without a mechanism no step is taken.
    `weighting`: examples (as `weights` states for each, or as clients say; up to `max_weight`) or equal. `bound`: makes
    the rule that shortens long updates; None: none does. `aggregate`: in the weighted mean's place, see `robust`; all
    clients then count the same.

    Without a `layout` it takes the place of FedAvg in any PyTorch app whose ClientApp has `mods=[quantized_mod]`:
    it takes FedAvg's own keyword arguments, samples and averages metrics as FedAvg does, and finds the layout in
    `initial_arrays`. `feedback=True` has clients add what rounding lost to their next update.

        strategy = QuantizedFedAvg(codec="int8", fraction_train=0.5)
        strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=3)
    """

    # pragma: no mutate start   `make mutants` is about the checks of replies: `collect` and `_checked`
    def __init__(
        self,
        layout: packets.Layout | None = None,
        codec: packets.Codec | str = "int8",
        *,
        downlink: Downlink | None = None,
        optimizer: Optimizer | None = None,
        private: bool = False,
        weighting: str = "examples",
        max_weight: float = LARGEST_WEIGHT,
        weights: Mapping[str, float] | None = None,
        bound: Callable[[], Bound] | None = MedianPull,
        aggregate: Aggregate | None = None,
        statistics: Sequence[str] = (),
        fraction: float = 1.0,
        min_clients: int = 1,
        seed: int = 0,
        timeout: float = 3600.0,
        holdout: float = 0.0,
        version: str = "",
        feedback: bool = False,
        pruning: Pruning | None = None,
        client_level: ClientLevelPlan | None = None,
        **flower: Any,
    ) -> None:
        if layout is None:
            check_options(private=private, fraction=fraction, seed=seed)
            super().__init__(**flower)
        else:
            check_layout(layout, feedback=feedback, flower=flower)
            super().__init__(fraction_train=fraction, min_train_nodes=1, min_available_nodes=1)
            # Passed to Flower, it would be a warning in each run.
            self.fraction_evaluate, self.min_evaluate_nodes = 0.0, 0
        self._guest = Guest(self, statistics=statistics) if layout is None else None
        plain = packets.as_codec(codec)
        self.codec, self.private = packets.with_feedback(plain, True) if feedback else plain, private
        self.downlink = downlink or downlink_for(self.codec)
        together = {"pruning": pruning, "client_level": client_level, "aggregate": aggregate}
        check_together(guest=layout is None, downlink_kind=self.downlink.kind, **together)
        self.pruning = pruning
        self.client_level = client_level
        self._mechanism: ClientLevelMechanism | None = None
        all_count_the_same = private or client_level is not None or aggregate is not None
        self.weighing = Weighing(weighting == "examples" and not all_count_the_same, max_weight, weights or {})
        self._bound, self._aggregate = bound, aggregate
        self.min_clients, self.seed, self.timeout, self.version = min_clients, seed, timeout, version
        self.holdout = holdout
        self._make_optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=1.0))
        self.begin(packets.Layout(()) if layout is None else layout, statistics)
        self._flower: tuple[Roster, CyclicSampler] | None = None  # only under Flower's own `start`
        self._master: np.ndarray | None = None
        self._asked: list[str] = []
        self._broadcast = Broadcast(b"")

    def begin(self, layout: packets.Layout, statistics: Sequence[str]) -> None:
        """Forget the run before this one, its optimizer and whose updates counted."""
        self.layout = layout
        self._statistics = layout.slices(lambda segment: segment.name in statistics)
        self._optimizer: torch.optim.Optimizer | None = None
        self._last_accepted: dict[str, int] = {}
        self._broadcaster = Broadcaster(layout, self.downlink, seed=self.seed)
        self._pruner = None if self.pruning is None else Pruner(layout, self.pruning)
        bound = None if self._bound is None or self.client_level is not None else self._bound()
        self._aggregation = Aggregation(self.codec, bound=bound, aggregate=self._aggregate)

    @property
    def sparsity(self) -> float | None:
        """Share of the prunable weights that are zero for good by now; None where nothing is ever pruned."""
        return None if self._pruner is None else self._pruner.sparsity

    @property
    def settled(self) -> bool:
        """Whether the model is as sparse as it shall be."""
        return self._pruner is None or self._pruner.settled

    @property
    def kept(self) -> packets.MaskedLayout:
        """Which weights are sent, both ways, until the next are pruned."""
        return packets.MaskedLayout(self.layout) if self._pruner is None else self._pruner.kept

    def protect(self, mechanism: ClientLevelMechanism) -> None:
        """What clips and noises the sums of this run; of the plan that the strategy was made for."""
        if mechanism.plan != self.client_level:
            raise ValueError(f"a mechanism for {mechanism.plan}, the strategy is for {self.client_level}")
        self._mechanism = mechanism

    # --- what one round is made of -----------------------------------------------------------------

    def broadcast(self, master: np.ndarray, round: int, cohort: Sequence[str]) -> Broadcast:
        """What the clients of the round get; a packet is encoded once, for all that it goes to."""
        clip_norm = None if self._mechanism is None else self._mechanism.clip_norm
        made = self._broadcaster.make(master, round, cohort, self.kept)
        return replace(made, clip_norm=clip_norm, limit=self._aggregation.limit())

    def snapshot(self, master: np.ndarray, round: int) -> Broadcast:
        """The model in one packet, for clients that evaluate."""
        return self._broadcaster.whole(master, round, self.kept)

    def last_accepted(self, cohort: Sequence[str]) -> dict[str, int]:
        """Client -> last round whose update of it was accepted; -1: none. A client needs it for error feedback."""
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
                wire.write_request(wire.Request(round, last, broadcast.packets(client), self.holdout)),
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
        """Check and fold replies as they come. Whatever fails a check leaves no trace but its reason."""
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
                weight, capped = self.weighing.of(client, reply.num_examples)
                if reply.packets:
                    self.fold(total, client, reply.packets, weight, round=round, broadcast=broadcast)
                if self.client_level is not None:  # no noise covers them: they end here
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

    # pragma: no mutate start
    def fold(
        self,
        total: RoundAggregate,
        client: str,
        update: Mapping[str, bytes],
        weight: float,
        *,
        round: int,
        broadcast: Broadcast,
    ) -> None:
        """Add checked packets to the round; a packet that does not decode changes nothing.

        Where whole clients are protected each update is clipped first, as it is after decoding.
        """
        base, clip_norm = broadcast.base, broadcast.clip_norm
        if self.client_level is None:
            self._aggregation.add(total, client, update, weight, round=round, base=base, limit=broadcast.limit)
            return
        if clip_norm is None:
            raise RuntimeError("no clip norm for this round: nothing is added without one; call protect() first")
        add_clipped(total, update, clip_norm=clip_norm, codec=self.codec, round=round, base=base)

    def settle(self, total: RoundAggregate, broadcast: Broadcast) -> RoundAggregate:
        """The round complete: what had to wait for all of its updates is done now, in the server's own process."""
        self._aggregation.settle(total, broadcast.limit)
        return total

    def finish(self, total: RoundAggregate, *, round: int = 0) -> np.ndarray:
        """Pseudo-gradient: minus the weighted mean update, float32, shape (layout.size,).

        Where whole clients are protected: minus the clipped, noised sum over the public size of a cohort.
        """
        if self.client_level is None:
            return self.kept.scatter(-self._aggregation.mean(total, wire.UPDATE))
        if self._mechanism is None:
            raise RuntimeError("whole clients are protected by no mechanism yet: call protect() before the rounds")
        sums = total.sums.get(wire.UPDATE, packets.Accumulator(total.layout))
        mean = self._mechanism.release(
            sums.steps(),
            grid=GRID,
            round=round,
            clip_norm=total.clip_norm,
            counted=sums.count,
            within=total.within,
        )
        return self.kept.scatter(-mean)

    def apply(self, master: np.ndarray, pseudo_gradient: np.ndarray) -> np.ndarray:
        """One step of the server optimizer on the flat master. FedAvg is SGD with lr 1; momentum and Adam come free."""
        parameter = torch.nn.Parameter(torch.from_numpy(master.copy()))
        if self._optimizer is None:
            self._optimizer = self._make_optimizer([parameter])
        else:
            # The state belongs to the parameter object: hand the optimizer the same one, with the new values.
            parameter = self._optimizer.param_groups[0]["params"][0]
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(master))
        parameter.grad = torch.from_numpy(pseudo_gradient)
        with without_compiler() if type(self._optimizer).__module__.startswith("torch.optim") else nullcontext():
            self._optimizer.step()
        parameter.grad = None
        stepped = parameter.detach().numpy().copy()
        for part in self._statistics:  # a running variance with momentum may become negative
            stepped[part] = master[part] - pseudo_gradient[part]
        return stepped

    def prune(self, round: int, master: np.ndarray) -> np.ndarray:
        """The master after a round, with what is pruned by then at 0.0, whatever the server optimizer made of it."""
        return master if self._pruner is None else self._pruner.after(round, master)

    def note(self, round: int, asked: Iterable[str], answered: Iterable[str]) -> None:
        """Who was asked, and who has surely read the broadcast of the round, whether the round counts or not."""
        self._broadcaster.note(round, asked, answered)

    def step(self, round: int, master: np.ndarray, total: RoundAggregate) -> np.ndarray:
        """The next master, and a note of whose update counted: their next request says so."""
        stepped = self.prune(round, self.apply(master, self.finish(total, round=round)))
        self._aggregation.note(total)
        self._last_accepted.update({a.client: round for a in total.accepted})
        return stepped

    # pragma: no mutate end
    def _checked(self, message: Message, round: int, task: str) -> wire.Reply:
        if message.has_error():
            raise wire.MalformedReply(wire.reason_of(message.error.reason), "Flower's error reply")
        training = task == wire.TRAIN
        if self._guest is not None:
            return self._guest.checked(message, round, task, frozenset({wire.UPDATE}))
        metrics = {"num_examples", "loss"} if training else {"num_examples", "loss", "metric"}
        reply = wire.read_reply(
            message.content,
            round=round,
            packets=frozenset({wire.UPDATE} if training else ()),
            metrics=frozenset(() if self.private else metrics),
            counts=self.private and not training,
        )
        if isinstance(reply, wire.Refusal):
            raise wire.MalformedReply(reply.reason, "the client refused")
        return reply

    # pragma: no mutate block
    # --- Flower's own loop -------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
    ) -> Iterable[Message]:
        """Flower's seam: the requests of the round. `config` goes to another app's clients, never to our own."""
        if self._guest is not None:
            messages = super().configure_train(server_round, arrays, config, grid)
            return self._guest.ask(wire.TRAIN, server_round, arrays, messages)
        if self._flower is None:
            self._flower = self._meet(grid)
        roster, sampler = self._flower
        size = max(1, int(self.fraction_train * len(roster.nodes) + 1e-9))
        self._master = self.layout.flatten(arrays_of(arrays))
        self._asked = sampler.cohort(server_round, size)
        self._broadcast = self.broadcast(self._master, server_round, self._asked)
        return self.messages(server_round, self._broadcast, self.last_accepted(self._asked), roster)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's seam: the new model, or None where too few replies were good."""
        if self._guest is not None:
            return self._guest.aggregate_train(server_round, replies)
        if self._flower is None or self._master is None:
            raise RuntimeError("aggregate_train before configure_train")
        total = self.collect(server_round, replies, self._asked, self._flower[0], self._broadcast)
        self.settle(total, self._broadcast)
        self.note(server_round, self._asked, [a.client for a in total.accepted])
        if len(total.accepted) < self.min_clients:
            return None, None
        master = self.step(server_round, self._master, total)
        metrics = MetricRecord({"clients": len(total.accepted), "lost": len(total.rejected)})
        return ArrayRecord({n: torch.from_numpy(a) for n, a in self.layout.unflatten(master).items()}), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
    ) -> Iterable[Message]:
        """Flower's seam: the new model for another app's clients to evaluate; none to our own."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        return messages if self._guest is None else self._guest.ask(wire.EVALUATE, server_round, arrays, messages)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Flower's seam: the metrics of another app's clients."""
        if self._guest is None:
            return super().aggregate_evaluate(server_round, replies)
        return self._guest.aggregate_evaluate(server_round, replies)

    def _meet(self, grid: Any) -> tuple[Roster, CyclicSampler]:
        """Nodes that are not there yet are waited for, as many as a round needs; then all are greeted."""
        if self.client_level is not None and self.client_level.sampling != "deal":
            raise ValueError("secret cohorts under Flower's own loop, which deals them; use fedq.server.run_rounds")
        if self.client_level is not None and self.min_clients > 0:
            raise ValueError(
                f"client_level with min_clients={self.min_clients}: a round that is skipped tells how many answered; "
                "use min_clients=0, so that each takes its noised step"
            )
        end = time.monotonic() + self.timeout
        while len(list(grid.get_node_ids())) < max(1, self.min_clients) and time.monotonic() < end:
            time.sleep(0.2)
        roster = say_hello(
            grid_exchange(grid),
            grid.get_node_ids(),
            version=self.version,
            formats=packets.FORMATS,
            layout=self.layout.digest,
            timeout=self.timeout,
            private=self.private or self.client_level is not None,
        )
        return roster, CyclicSampler(list(roster.nodes), seed=self.seed)


# pragma: no mutate block
def arrays_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    """Name -> array of a Flower record."""
    return {name: array.numpy() for name, array in record.items()}
