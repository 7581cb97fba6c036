"""Clients in this process, or in worker processes of this machine. Knows apps and strategies; not the terminal."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from flwr.app import Context, Message

from fedq import __version__, codec, wire
from fedq.app import client_app
from fedq.client import Client
from fedq.delivery import client_folder
from fedq.experiment import Experiment
from fedq.runtime.grid import InProcessGrid
from fedq.runtime.meter import Meter
from fedq.server import Roster, Total, say_hello
from fedq.server.roster import grid_exchange
from fedq.server.strategy import QuantizedFedAvg
from fedq.server.total import Traffic

Replied = Callable[[int, int], None]  # told after each reply: how many came, how many are expected


def nobody(done: int, expected: int) -> None:
    """For whoever does not watch."""


class InProcess:
    """All clients in this process: a debugger and a notebook see everything."""

    def __init__(
        self, experiment: Experiment, strategy: QuantizedFedAvg, folder: Path, *, replied: Replied = nobody
    ) -> None:
        self._strategy, self._replied = strategy, replied
        clients: dict[str, Client] = {}  # one for each name, so that its residual lives through the run

        def client_of(context: Context) -> Client:
            name = str(context.node_config["partition-id"])
            if name not in clients:
                clients[name] = experiment.client(name, folder=client_folder(folder, name), run=folder.name)
            return clients[name]

        self._grid = InProcessGrid(client_app(client_of), experiment.identities, Meter(experiment.layout))
        self._exchange = grid_exchange(self._grid)
        # Node ids follow the order of the names, so every worker knows them without being told.
        self._roster = Roster(dict(zip(experiment.identities, self._grid.contexts, strict=True)))

    def close(self) -> None:
        """Nothing runs between calls."""

    def meet(self) -> tuple[Roster, Traffic]:
        strategy = self._strategy
        self._roster = say_hello(
            self._exchange,
            self._grid.get_node_ids(),
            version=__version__,
            formats=codec.FORMATS,
            layout=strategy.layout.digest,
            timeout=strategy.timeout,
        )
        return self._roster, self._grid.meter.take()

    def gather(
        self,
        round: int,
        broadcast: Mapping[str, bytes],
        accepted: Mapping[str, int],
        *,
        task: str = wire.TRAIN,
    ) -> Total:
        messages = self._strategy.messages(round, broadcast, accepted, self._roster, task=task)
        replies = self._counted(self._exchange(messages, self._strategy.timeout), len(messages))
        total = self._strategy.collect(round, replies, list(accepted), self._roster, broadcast, task=task)
        total.traffic.add(self._grid.meter.take())
        return total

    def _counted(self, replies: Iterable[Message], expected: int) -> Iterator[Message]:
        for done, reply in enumerate(replies, start=1):
            yield reply
            self._replied(done, expected)
