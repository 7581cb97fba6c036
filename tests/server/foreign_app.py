"""An app of a Flower user, small enough to compute by hand: it adds a drawn update to the arrays that it gets."""

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy.result import Result

from fedq import quantized_mod
from fedq.core.randomness import generator
from fedq.flower.grid import InProcessGrid

Arrays = dict[str, np.ndarray]
Lie = Callable[[Message, Message], Message]  # the reply that was made, the request -> the reply that is sent
STATE = {
    "weight": torch.from_numpy(generator(0, "weight").normal(size=(30, 20)).astype(np.float32)),
    "bias": torch.zeros(20),
    "norm.running_var": torch.ones(20),
    "norm.num_batches_tracked": torch.tensor(7),
    "mask": torch.tensor([True, False]),
}
FLOATS = ("weight", "bias", "norm.running_var")
NODES = (1, 2, 3, 4)


def update_of(node: int, round: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return generator(1, name, node, round).normal(scale=0.1, size=shape).astype(np.float32)


def examples_of(node: int) -> int:
    return 10 + node


def trained(arrays: Arrays, node: int, round: int) -> Arrays:
    """The app's train function: floats move, the counter counts."""
    moved = {
        name: array + update_of(node, round, name, array.shape).astype(array.dtype)
        for name, array in arrays.items()
        if array.dtype.kind == "f"
    }
    counted = {"norm.num_batches_tracked": arrays["norm.num_batches_tracked"] + 1}
    return {**arrays, **moved, **counted}


@dataclass
class Seen:
    """What the app's functions were given."""

    task: str
    node: int
    records: RecordDict

    @property
    def arrays(self) -> Arrays:
        return {name: array.numpy() for name, array in self.records["arrays"].items()}


@dataclass
class App:
    """A ClientApp as Flower's users write one, and what it saw."""

    train: Callable[[Arrays, int, int], Arrays] = trained
    mods: tuple[Any, ...] = (quantized_mod,)
    seen: list[Seen] = field(default_factory=list)

    def client(self) -> ClientApp:
        app = ClientApp(mods=list(self.mods))

        @app.train()
        def train(message: Message, context: Context) -> Message:
            arrays = message.content["arrays"].to_torch_state_dict()
            self.seen.append(Seen("train", context.node_id, message.content))
            new = self.train(
                {name: tensor.numpy() for name, tensor in arrays.items()},
                context.node_id,
                message.content["config"]["server-round"],
            )
            record = ArrayRecord({name: torch.from_numpy(np.asarray(array)) for name, array in new.items()})
            metrics = MetricRecord({"loss": float(context.node_id), "num-examples": examples_of(context.node_id)})
            told = {"arrays": record, "metrics": metrics, "notes": ConfigRecord({"hello": "server"})}
            return Message(RecordDict(told), reply_to=message)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            message.content["arrays"].to_torch_state_dict()
            self.seen.append(Seen("evaluate", context.node_id, message.content))
            metrics = MetricRecord({"accuracy": 0.25, "num-examples": examples_of(context.node_id)})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        return app


class Network(InProcessGrid):
    """The grid of this process, with liars among the nodes, and a say in which train replies arrive."""

    def __init__(self, app: App, lies: Mapping[int, Lie], deliver: Callable[[list[Message]], Iterable[Message]]):
        super().__init__(app.client(), len(NODES))
        self._lies, self._deliver = lies, deliver
        self.sent: list[Message] = []

    def stream(self, messages: Iterable[Message]) -> Iterable[Message]:
        replies = []
        for message in messages:
            self.sent.append(Message(message.content, dst_node_id=message.metadata.dst_node_id, message_type="train"))
            node, training = message.metadata.dst_node_id, message.metadata.message_type == "train"
            (reply,) = super().stream([message])
            replies.append(self._lies[node](reply, message) if training and node in self._lies else reply)
        return self._deliver(replies) if replies and replies[0].metadata.message_type == "train" else replies


@dataclass
class Ran:
    """What a run left behind."""

    result: Result
    app: App
    grid: Network

    @property
    def model(self) -> Arrays:
        return {name: tensor.numpy() for name, tensor in self.result.arrays.to_torch_state_dict().items()}


def run(
    strategy: Any,
    app: App | None = None,
    *,
    lies: Mapping[int, Lie] | None = None,
    deliver: Callable[[list[Message]], Iterable[Message]] = lambda replies: replies,
    rounds: int = 2,
    state: Mapping[str, torch.Tensor] | None = None,
    **start: Any,
) -> Ran:
    """Some rounds of Flower's own loop."""
    app = app or App()
    grid = Network(app, lies or {}, deliver)
    initial = ArrayRecord(dict(STATE if state is None else state))
    return Ran(strategy.start(grid, initial, num_rounds=rounds, **start), app, grid)


def forged(packet: bytes, at: int, new: bytes) -> bytes:
    """Bytes overwritten, and the checksum made to fit: what an attacker sends, not a bad cable."""
    changed = bytearray(packet)
    changed[at : at + len(new)] = new
    changed[64:72] = struct.pack("<Q", xxhash.xxh3_64(bytes(changed[:64]) + bytes(changed[72:])).intdigest())
    return bytes(changed)
