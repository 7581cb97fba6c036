"""Run clients in this process, for debuggers and notebooks. Depends on apps and links; not on the terminal."""

from pathlib import Path

from flwr.app import Context

from fedq import __version__, codec
from fedq.app.answer import client_app
from fedq.client import Client
from fedq.experiment import Experiment, client_folder
from fedq.flower.grid import InProcessGrid
from fedq.server import GridLink, Roster, Strategy, say_hello
from fedq.server.link import Replied, nobody
from fedq.server.roster import Exchange


def in_process(experiment: Experiment, strategy: Strategy, folder: Path, *, replied: Replied = nobody) -> GridLink:
    """A link to all clients of the experiment, each with its own folder inside the run's folder."""
    clients: dict[str, Client] = {}  # one for each name, so that its residual lasts for the whole run
    names = experiment.identities

    def client_of(context: Context) -> Client:
        name = names[int(context.node_config["partition-id"])]
        if name not in clients:
            clients[name] = experiment.client(name, folder=client_folder(folder, name), run=folder.name)
        return clients[name]

    grid = InProcessGrid(client_app(client_of), len(names))

    def greet(exchange: Exchange) -> Roster:
        return say_hello(
            exchange,
            grid.get_node_ids(),
            version=__version__,
            formats=codec.FORMATS,
            layout=strategy.layout.digest,
            timeout=strategy.terms.timeout,
        )

    # Node ids follow the order of the names, so every worker can compute them.
    roster = Roster(dict(zip(names, grid.contexts, strict=True)))
    return GridLink(strategy, grid, greet, roster=roster, replied=replied)
