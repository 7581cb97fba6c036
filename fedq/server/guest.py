"""`QuantizedFedAvg` inside an app that is not fedq's: Flower's records in and out, packets between. Knows no models.

Flower samples the nodes, writes the app's own records and averages its metrics; the round in between is the
strategy's own (`broadcast`, `collect`, `step`). A node is known by its id, so no hello is needed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from logging import getLogger
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedq.codec import REASONS, Layout, Segment
from fedq.flower import wire
from fedq.server.broadcast import Broadcast
from fedq.server.roster import Roster
from fedq.server.round_aggregate import RoundAggregate

if TYPE_CHECKING:
    from fedq.server.strategy import QuantizedFedAvg

LOG = getLogger("flwr")  # Flower's own
# Biases, norms and running statistics: few values, and a running variance that is rounded below zero is NaN.
LARGEST_VERBATIM_VECTOR = 4096
STATISTICS = ("running_mean", "running_var")  # torch's names
FLOATS = ("float32", "float16", "float64")  # no record of Flower's holds bfloat16
INTEGERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


class Guest:
    """What one run in another's app needs beside the strategy: the app's arrays, and who was asked."""

    def __init__(self, strategy: "QuantizedFedAvg", *, statistics: Sequence[str]) -> None:
        self._strategy, self._statistics = strategy, statistics
        self._arrays: ArrayRecord | None = None
        self._master = np.empty(0, np.float32)
        self._round = 0  # of the last training
        self._roster = Roster()
        self._broadcast = Broadcast(b"")
        self._said: dict[str, RecordDict] = {}  # node -> the app's own records, of replies that passed the checks

    def ask(self, task: str, round: int, arrays: ArrayRecord, messages: Iterable[Message]) -> list[Message]:
        """Flower's own requests, with the arrays packed."""
        asked, strategy = list(messages), self._strategy
        self._roster = Roster({str(message.metadata.dst_node_id): message.metadata.dst_node_id for message in asked})
        if not asked:
            return []
        self._take(arrays, begins=task == wire.TRAIN and round <= self._round)
        if task == wire.TRAIN:
            self._round = round
        if task == wire.TRAIN:
            self._broadcast = strategy.broadcast(self._master, round, list(self._roster.nodes))
        else:
            self._broadcast = strategy.snapshot(self._master, round)
        whole = {s.name: arrays[s.name] for s in strategy.layout.segments if s.role == "local"}
        layout, accepted = strategy.layout.to_bytes(), strategy.last_accepted(list(self._roster.nodes))
        for message in asked:
            node = str(message.metadata.dst_node_id)
            last = accepted[node] if strategy.codec.feedback and task == wire.TRAIN else None
            request = wire.GuestRequest(
                round=round,
                accepted=last,
                seed=strategy.seed,
                layout=layout,
                arrays=strategy.arrayrecord_key,
                codec=strategy.codec.name,
                options=strategy.codec.options(),
                packets=self._broadcast.packets(node),
                whole=whole,
            )
            message.content = wire.write_guest_request(request, message.content)
        return asked

    def aggregate_train(self, round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new arrays and the app's metrics; None, None where too few replies were good."""
        strategy = self._strategy
        total = strategy.settle(self._collect(wire.TRAIN, round, replies), self._broadcast)
        if len(total.accepted) < max(1, strategy.min_clients):
            return None, None
        self._master = strategy.step(round, self._master, total)
        self._arrays = self._record()
        return self._arrays, strategy.train_metrics_aggr_fn(self._alike(total), strategy.weighted_by_key)

    def aggregate_evaluate(self, round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The app's metrics; None where no reply was good."""
        strategy = self._strategy
        total = self._collect(wire.EVALUATE, round, replies)
        if not total.accepted:
            return None
        return strategy.evaluate_metrics_aggr_fn(self._alike(total), strategy.weighted_by_key)

    def checked(self, message: Message, round: int, task: str, packets: frozenset[str]) -> wire.Reply:
        """The packet and the weight of a reply; what the app said beside them is kept for its metrics."""
        content, key = message.content, self._strategy.weighted_by_key
        if task == wire.TRAIN:
            reply = wire.read_guest_reply(content, round=round, packets=packets, weighted_by=key)
        else:
            reply = wire.read_guest_metrics(content, round=round, weighted_by=key)
        self._said[str(message.metadata.src_node_id)] = wire.user_records(content)
        return reply

    def _take(self, arrays: ArrayRecord, *, begins: bool) -> None:
        """Make these arrays the master. A run begins where the rounds start again or the model is another."""
        layout = layout_of_record(arrays)
        if begins or layout != self._strategy.layout:
            found = [s.name for s in layout.averaged if s.name.endswith(STATISTICS)]
            self._strategy.begin(layout, [*self._statistics, *found])
        if arrays is not self._arrays:  # of those that we returned we keep float32, whatever the app's dtypes
            self._master = layout.flatten({s.name: arrays[s.name].numpy() for s in layout.averaged})
            self._arrays = arrays

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

    def _alike(self, total: RoundAggregate) -> list[RecordDict]:
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


def check_options(*, private: bool, fraction: float, seed: int) -> None:
    """Options of `QuantizedFedAvg` that mean nothing here, or cannot be sent."""
    if private:
        raise ValueError("private=True needs a layout: clients of another app give no guarantee; run fedq's own client")
    if fraction != 1.0:
        raise ValueError(f"fraction={fraction}: without a layout it has FedAvg's name; use fraction_train={fraction}")
    if type(seed) is not int or not -(2**63) <= seed < 2**63:  # what a ConfigRecord holds
        raise ValueError(f"seed={seed!r}: must be an integer of 64 bits")


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
