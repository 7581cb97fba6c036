"""A federation small enough to compute by hand: clients that send a drawn update, liars, a network that reorders."""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xxhash
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedq import codec
from fedq.codec import Int8, Layout, Segment
from fedq.core.randomness import generator
from fedq.flower import wire
from fedq.flower.grid import InProcessGrid
from fedq.server import (
    Broadcast,
    CyclicSampler,
    Outcome,
    RoundAggregate,
    Rules,
    Strategy,
    Terms,
    run_rounds,
    say_hello,
)
from fedq.server.aggregation import Averaging
from fedq.server.bounding import MedianPull
from fedq.server.client_level import ClientLevelSum
from fedq.server.link import counted
from fedq.server.loop import Round, Scores
from fedq.server.meter import Meter
from fedq.server.optimizer import ServerOptimizer, sgd
from fedq.server.roster import grid_exchange
from fedq.server.sampling import Sampler
from fedq.server.weighing import Weighing

LAYOUT = Layout([Segment("weight", (20, 16)), Segment("bias", (4,))])  # 320 values as int8, 4 as float32
CODEC = Int8(block=64, rounding="stochastic")
START = generator(0, "start").normal(size=LAYOUT.size).astype(np.float32)
VERSION = "1"


def make_strategy(
    uplink: Any = CODEC,
    *,
    optimizer: Any = sgd,
    weighting: str = "examples",
    bound: Any = MedianPull,
    aggregate: Any = None,
    client_level: Any = None,
    private: bool = False,
    min_clients: int = 1,
    max_weight: float = 2.0**20,
    **parts: Any,
) -> Strategy:
    """A strategy over LAYOUT from flat options, named as the config names them."""
    weighing = Weighing(weighting == "examples" and not private and aggregate is None, max_weight)
    aggregation = (
        Averaging(uplink, weighing=weighing, bound=bound, aggregate=aggregate)
        if client_level is None
        else ClientLevelSum(uplink, client_level)
    )
    return Strategy(
        LAYOUT,
        uplink,
        optimizer=ServerOptimizer(optimizer),
        aggregation=aggregation,
        terms=Terms(min_clients=min_clients, private=private, timeout=1.0, version=VERSION),
        **parts,
    )


@dataclass(frozen=True)
class Told:
    """What an honest client is about to say; a lie is a change of it."""

    round: int
    base: bytes
    update: np.ndarray
    num_examples: float
    loss: float = 0.5
    kind: Any = "delta"
    codec: Any = CODEC
    layout: Layout = LAYOUT
    private: bool = False
    packet_round: int | None = None

    def packet(self) -> bytes:
        round = self.round if self.packet_round is None else self.packet_round
        return codec.encode(
            self.update, self.codec, layout=self.layout, kind=self.kind, round=round, base=self.base, key=self.round
        )

    def records(self, packet: bytes | None = None) -> dict[str, Any]:
        """The records of docs: written out by hand, so that a change of the wire is seen here."""
        records: dict[str, Any] = {
            "fedq.reply": ConfigRecord({"round": self.round}),
            "fedq.packets": ConfigRecord({"update": self.packet() if packet is None else packet}),
        }
        if not self.private:
            records["fedq.metrics"] = MetricRecord({"num_examples": self.num_examples, "loss": self.loss})
        return records


Lie = Callable[[Told], RecordDict | Error]


def instead(**changes: Any) -> Lie:
    """The honest reply but for these fields."""
    return lambda told: RecordDict(replace(told, **changes).records())


def forged(at: int, new: bytes, **changes: Any) -> Lie:
    """Bytes of the packet overwritten, and the checksum made to fit: what an attacker sends, not a bad cable."""

    def lie(told: Told) -> RecordDict:
        told = replace(told, **changes)
        packet = bytearray(told.packet())
        packet[at : at + len(new)] = new
        checksum = xxhash.xxh3_64(bytes(packet[:64]) + bytes(packet[72:])).intdigest()
        packet[64:72] = struct.pack("<Q", checksum)
        return RecordDict(told.records(bytes(packet)))

    return lie


def with_records(**records: Any) -> Lie:
    """The honest records with some replaced, added or (None) left out; names without `fedq.`."""

    def lie(told: Told) -> RecordDict:
        named = {**told.records(), **{f"fedq.{name}": record for name, record in records.items()}}
        return RecordDict({name: record for name, record in named.items() if record is not None})

    return lie


def update_of(name: str, round: int) -> np.ndarray:
    return generator(1, name, round).normal(scale=0.1, size=LAYOUT.size).astype(np.float32)


def examples_of(name: str) -> int:
    return 10 + int(name)


def client_app(
    names: Sequence[str], lies: Mapping[str, Lie], requests: list[tuple[str, wire.Request]], *, private: bool
) -> ClientApp:
    app = ClientApp()

    def name_of(context: Context) -> str:
        return names[int(context.node_config["partition-id"])]

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        told = wire.Hello(name_of(context), VERSION, codec.FORMATS, LAYOUT.digest)
        return Message(wire.write_hello(told), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        name = name_of(context)
        request = wire.read_request(message.content)
        requests.append((name, request))
        base = codec.digest(codec.decode(request.packets["model"], LAYOUT, round=request.round, kind="weights"))
        told = Told(request.round, base, update_of(name, request.round), examples_of(name), private=private)
        return Message(lies[name](told) if name in lies else RecordDict(told.records()), reply_to=message)

    return app


class Network(InProcessGrid):
    """The grid of this process, with a say in which replies of a round arrive, and in what order."""

    def __init__(self, app: ClientApp, clients: Sequence[str], deliver: Callable[[list[Message]], Iterable[Message]]):
        super().__init__(app, len(clients))
        self.meter = Meter(LAYOUT)
        self._deliver = deliver

    def stream(self, messages: Iterable[Message]) -> Iterable[Message]:
        replies = list(super().stream(messages))
        training = bool(replies) and replies[0].metadata.message_type == wire.TRAIN
        return self._deliver(replies) if training else replies


@dataclass
class Ran:
    """What a run left behind."""

    outcome: Outcome
    rounds: list[Round]
    requests: list[tuple[str, wire.Request]] = field(default_factory=list)

    @property
    def model(self) -> bytes:
        return self.outcome.master.tobytes()

    def reasons(self, round: int) -> list[tuple[str, str]]:
        return [(r.client, r.reason) for r in self.rounds[round].rejected]


def run(
    lies: Mapping[str, Lie] | None = None,
    *,
    clients: Sequence[str] = ("0", "1", "2", "3"),
    rounds: int = 2,
    cohort: int | None = None,
    min_clients: int = 1,
    deliver: Callable[[list[Message]], Iterable[Message]] = lambda replies: replies,
    score: Callable[[int, np.ndarray], Scores] = lambda round, master: Scores(),
    watch: Callable[[Round], None] = lambda round: None,
    keep: str = "last",
    greater_is_better: bool = True,
    due: Callable[[int], bool] = lambda round: True,
    strategy: Strategy | None = None,
    sampler: Sampler | None = None,
    ema: float | None = None,
    **options: Any,
) -> Ran:
    """Some rounds of `make_strategy(**options)`, or of the given strategy, over hand-made clients."""
    strategy = strategy or make_strategy(**options)
    requests: list[tuple[str, wire.Request]] = []
    app = client_app(clients, lies or {}, requests, private=strategy.terms.private)
    grid = Network(app, clients, deliver)
    exchange = counted(grid_exchange(grid), grid.meter)
    roster = say_hello(
        exchange, grid.get_node_ids(), version=VERSION, formats=codec.FORMATS, layout=LAYOUT.digest, timeout=1
    )

    def gather(round: int, broadcast: Broadcast, accepted: Mapping[str, int]) -> RoundAggregate:
        replies = exchange(strategy.messages(round, broadcast, accepted, roster), 1)
        total = strategy.collect(round, replies, list(accepted), roster, broadcast)
        total.traffic.add(grid.meter.take())
        return total

    seen: list[Round] = []
    outcome = run_rounds(
        strategy=strategy,
        sampler=sampler or CyclicSampler(list(roster.nodes), seed=strategy.terms.seed),
        master=START,
        gather=gather,
        score=score,
        watch=lambda round: (seen.append(round), watch(round))[1],
        rules=Rules(rounds, cohort or len(clients), min_clients, due, keep, greater_is_better, ema),
        hello=grid.meter.take(),
        refused=roster.refused,
    )
    return Ran(outcome, seen, requests)
