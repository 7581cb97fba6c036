"""The adapter for other Flower apps: Flower's records in and out, packets between. Does not know models.

Flower samples the nodes, writes the app's own records and averages its metrics; the round in between is that of
`Strategy`. A node is known by its id, so no handshake is needed.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from logging import getLogger
from math import prod
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedq.codec import REASONS, Codec, Layout, Segment, as_codec, with_error_feedback
from fedq.flower import wire
from fedq.server.aggregation import Aggregation, Averaging
from fedq.server.bounding import MedianPull
from fedq.server.broadcast import Broadcast, Downlink, downlink_for
from fedq.server.optimizer import MakeOptimizer, ServerOptimizer, sgd
from fedq.server.roster import Roster
from fedq.server.round_aggregate import RoundAggregate
from fedq.server.strategy import Strategy, Terms
from fedq.server.weighing import Weighing

LOG = getLogger("flwr")  # Flower's own
# Biases, norms and running statistics: few values, and a running variance that is rounded below zero is NaN.
LARGEST_VERBATIM_VECTOR = 4096
STATISTICS = ("running_mean", "running_var")  # torch's names
FLOATS = ("float32", "float16", "float64")  # no record of Flower's holds bfloat16
INTEGERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


class QuantizedFedAvg(FedAvg):
    """Takes the place of FedAvg in any PyTorch app whose ClientApp has `mods=[quantized_mod]`.

    It takes FedAvg's own keyword arguments, samples and averages metrics as FedAvg does, and finds the model's layout
    in `initial_arrays`. Both ways the arrays travel in `codec` (`downlink`: another codec for the model).
    `error_feedback=True` has clients add what rounding lost to their next update. `optimizer`: from a parameter list to
    the server's torch optimizer; running statistics take the plain mean. `weighting`: by the clients' "num-examples",
    or "equal". `aggregation`: from a codec to a robust aggregation of your own; by default one update moves the model
    no further than twice the median. There is no privacy here: for DP use fedq's own client.

        strategy = QuantizedFedAvg(codec="int8", fraction_train=0.5)
        strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=3)
    """

    def __init__(
        self,
        codec: Codec | str = "int8",
        *,
        error_feedback: bool = False,
        downlink: Downlink | None = None,
        optimizer: MakeOptimizer = sgd,
        weighting: Literal["examples", "equal"] = "examples",
        aggregation: Callable[[Codec], Aggregation] | None = None,
        min_clients: int = 1,
        seed: int = 0,
        **flower: Any,
    ) -> None:
        super().__init__(**flower)
        plain = as_codec(codec)
        self.codec = with_error_feedback(plain, True) if error_feedback else plain
        self.downlink = downlink or downlink_for(self.codec)
        if self.downlink.kind == "delta":
            raise ValueError("downlink.kind=delta: another app's clients keep no weights to change; use weights")
        if weighting not in ("examples", "equal"):
            raise ValueError(f"weighting={weighting!r}: must be examples or equal")
        if type(seed) is not int or not -(2**63) <= seed < 2**63:  # what a ConfigRecord holds
            raise ValueError(f"seed={seed!r}: must be an integer of 64 bits")
        self._make_optimizer, self.terms = optimizer, Terms(seed=seed, min_clients=min_clients)
        weighing = Weighing(by_examples=weighting == "examples")
        self._make_aggregation = aggregation or (lambda codec: Averaging(codec, weighing=weighing, bound=MedianPull))
        self._strategy = _AppStrategy(Layout(()), self)
        self._arrays: ArrayRecord | None = None
        self._master = np.empty(0, np.float32)
        self._round = 0  # of the last training
        self._roster = Roster()
        self._broadcast = Broadcast(b"")
        self._said: dict[str, RecordDict] = {}  # node -> the app's own records, of replies that passed the checks

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
    ) -> Iterable[Message]:
        """Flower's seam: its own requests, with the arrays packed."""
        return self._ask(wire.TRAIN, server_round, arrays, super().configure_train(server_round, arrays, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
    ) -> Iterable[Message]:
        """Flower's seam: the new model for the app's clients to evaluate."""
        asked = super().configure_evaluate(server_round, arrays, config, grid)
        return self._ask(wire.EVALUATE, server_round, arrays, asked)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's seam: the new arrays and the app's metrics; None, None where too few replies were good."""
        total = self._strategy.settle(self._collect(wire.TRAIN, server_round, replies), self._broadcast)
        if len(total.accepted) < max(1, self.terms.min_clients):
            return None, None
        self._master = self._strategy.step(server_round, self._master, total)
        self._arrays = self._record()
        return self._arrays, self.train_metrics_aggr_fn(self._comparable(total), self.weighted_by_key)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Flower's seam: the app's metrics; None where no reply was good."""
        total = self._collect(wire.EVALUATE, server_round, replies)
        if not total.accepted:
            return None
        return self.evaluate_metrics_aggr_fn(self._comparable(total), self.weighted_by_key)

    def _ask(self, task: str, round: int, arrays: ArrayRecord, messages: Iterable[Message]) -> list[Message]:
        """Flower's own requests, with the arrays packed."""
        asked = list(messages)
        self._roster = Roster({str(message.metadata.dst_node_id): message.metadata.dst_node_id for message in asked})
        if not asked:
            return []
        self._take(arrays, begins=task == wire.TRAIN and round <= self._round)
        strategy = self._strategy
        if task == wire.TRAIN:
            self._round = round
            self._broadcast = strategy.broadcast(self._master, round, list(self._roster.nodes))
        else:
            self._broadcast = strategy.snapshot(self._master, round)
        whole = {s.name: arrays[s.name] for s in strategy.layout.segments if s.role == "local"}
        layout, accepted = strategy.layout.to_bytes(), strategy.last_accepted(list(self._roster.nodes))
        for message in asked:
            node = str(message.metadata.dst_node_id)
            request = wire.ForeignRequest(
                round=round,
                accepted=accepted[node] if self.codec.error_feedback and task == wire.TRAIN else None,
                seed=self.terms.seed,
                layout=layout,
                arrays=self.arrayrecord_key,
                codec=self.codec.name,
                options=self.codec.options(),
                packets=self._broadcast.packets(node),
                whole=whole,
            )
            message.content = wire.write_foreign_request(request, message.content)
        return asked

    def read(self, message: Message, round: int, task: str) -> wire.Reply:
        """The packet and the weight of a reply; what the app said beside them is kept for its metrics."""
        content, key = message.content, self.weighted_by_key
        if task == wire.TRAIN:
            reply = wire.read_foreign_reply(content, round=round, packets=frozenset({wire.UPDATE}), weighted_by=key)
        else:
            reply = wire.read_foreign_metrics(content, round=round, weighted_by=key)
        self._said[str(message.metadata.src_node_id)] = wire.user_records(content)
        return reply

    def _take(self, arrays: ArrayRecord, *, begins: bool) -> None:
        """Make these arrays the master. A run begins where the rounds start again or the model is another."""
        layout = layout_of_record(arrays)
        if begins or layout != self._strategy.layout:
            self._strategy = _AppStrategy(layout, self)
        if arrays is not self._arrays:  # of those that we returned we keep float32, whatever the app's dtypes
            self._master = layout.flatten({s.name: arrays[s.name].numpy() for s in layout.averaged})
            self._arrays = arrays

    def server_optimizer(self, layout: Layout) -> ServerOptimizer:
        """A new one, for a run over this layout."""
        return ServerOptimizer(self._make_optimizer, layout.slices(lambda s: s.name.endswith(STATISTICS)))

    def new_aggregation(self) -> Aggregation:
        """A new one, which has seen no round."""
        return self._make_aggregation(self.codec)

    def _collect(self, task: str, round: int, replies: Iterable[Message]) -> RoundAggregate:
        received, self._said = list(replies), {}
        if not self._roster.nodes:  # Flower skips this half of the round
            return RoundAggregate(self._strategy.layout)
        total = self._strategy.collect(
            round, received, list(self._roster.nodes), self._roster, self._broadcast, task=task
        )
        errors = {str(m.metadata.src_node_id): m.error.reason or "" for m in received if m.has_error()}
        for rejected in total.rejected:
            why = wire.REJECTIONS.get(rejected.reason) or REASONS.get(rejected.reason.removeprefix("packet_"), "")
            if rejected.reason == "error" and errors.get(rejected.client):
                why = _last_line(errors[rejected.client])
            LOG.warning("%s, round %d: node %s dropped: %s (%s)", task, round, rejected.client, rejected.reason, why)
        return total

    def _comparable(self, total: RoundAggregate) -> list[RecordDict]:
        """What the accepted clients said, without those whose metrics have another form than most.

        Flower's aggregation needs the same keys of all, and fails, or blends what is not there, where one differs.
        """
        said = {a.client: self._said[a.client] for a in total.accepted}
        forms = {client: _form(content) for client, content in said.items()}
        (usual, _), *others = Counter(forms.values()).most_common()
        if others:
            odd = sorted(client for client, form in forms.items() if form != usual)
            LOG.warning("metrics of nodes %s left out: other keys or lengths than most", ", ".join(odd))
        return [content for client, content in said.items() if forms[client] == usual]

    def _record(self) -> ArrayRecord:
        """The master as the app's own arrays: its order and dtypes; integers as they were."""
        assert self._arrays is not None
        layout, record = self._strategy.layout, ArrayRecord()
        averaged = layout.unflatten(self._master)
        for segment in layout.segments:
            if segment.role == "averaged":
                with np.errstate(over="ignore", under="ignore"):
                    record[segment.name] = Array(averaged[segment.name].astype(segment.dtype))
            else:
                record[segment.name] = self._arrays[segment.name]
        return record


class _AppStrategy(Strategy):
    """One run's rounds; replies are those of the app, read by its adapter."""

    def __init__(self, layout: Layout, app: QuantizedFedAvg) -> None:
        super().__init__(
            layout,
            app.codec,
            downlink=app.downlink,
            optimizer=app.server_optimizer(layout),
            aggregation=app.new_aggregation(),
            terms=app.terms,
        )
        self._app = app

    def _read(self, message: Message, round: int, task: str) -> wire.Reply:
        return self._app.read(message, round, task)


def layout_of_record(arrays: ArrayRecord) -> Layout:
    """One segment for each array, in order: floats are averaged, integers and booleans stay the server's."""
    layout = Layout(_segment(name, array) for name, array in arrays.items())
    if not layout.size:
        raise ValueError("initial_arrays hold no float array: nothing to average; give ArrayRecord(model.state_dict())")
    return layout


def _segment(name: str, array: Array) -> Segment:
    shape, dtype = tuple(array.shape), array.dtype
    if dtype in INTEGERS:
        return Segment(name, shape, dtype, role="local")
    if dtype not in FLOATS:
        raise ValueError(f"array {name!r} is {dtype}: must be {', '.join(FLOATS)}, integer or bool; convert the model")
    few = len(shape) < 2 and prod(shape) <= LARGEST_VERBATIM_VECTOR
    return Segment(name, shape, dtype, hint="float32" if few else None)


def _last_line(text: str) -> str:
    """What a client's exception says, after Ray's traceback. A client's text: quoted, so that no escape is obeyed."""
    return repr(text.strip().rpartition("\n")[2][-300:])


def _form(content: RecordDict) -> tuple[object, ...]:
    """Names of the metrics, and which of them are lists of what length."""
    return tuple(
        (name, key, len(value) if isinstance(value, list) else None)
        for name, record in sorted(content.metric_records.items())
        for key, value in sorted(record.items())
    )
