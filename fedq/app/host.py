"""The server inside Flower's ServerApp process: bundle and run config in, a run folder on this host out.

Knows Flower's grid and context; not how the process was started. What happens is printed as events, which whoever
started the run follows; the run folder stays here.
"""

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from flwr.app import Context

from fedq import __version__, codec, flower
from fedq.app.bundle import overlay
from fedq.app.node import home, simulated_clients
from fedq.app.serving import serve
from fedq.config import ConfigError, compose, network
from fedq.config.config_file import write_config
from fedq.delivery import ClientFiles
from fedq.experiment import SERVER, Experiment, build
from fedq.results import RoundRow, events, new_run_folder
from fedq.server import GridLink, QuantizedFedAvg, Roster
from fedq.server.link import Replied, nobody
from fedq.server.roster import Desk, Exchange, TooFewClientsError, wait_for_clients
from fedq.training.numerics import use_one_thread


def serve_run(grid: Any, context: Context) -> None:
    """The whole run. An error is told as an event and then raised, so that Flower calls the run failed."""
    use_one_thread()
    simulated = flower.is_in_memory(grid)
    try:
        overrides = network.read(context.run_config.get(network.OVERRIDES))
        config = compose(overrides, overlay=overlay())
        experiment = build(config, owner=None if simulated else SERVER)
        folder = new_run_folder(os.environ.get("FEDQ_OUTPUTS") or home() / "outputs", config.name)
        write_config(config, folder / "config.yaml")
        _tell("folder", host=socket.gethostname(), path=str(folder), rounds=config.rounds, name=config.name)
        strategy, clients = experiment.strategy(), simulated_clients(context.run_id)
        result = serve(
            experiment,
            strategy,
            link(experiment, strategy, grid, tell=lambda text: _tell("note", text=text)),
            folder=folder,
            watch=_tell_row,
            clients=ClientFiles(clients, str(context.run_id)) if simulated else None,
        )
        if simulated and clients.is_dir():
            shutil.move(clients, folder / "clients")
        _tell("result", **result.to_dict())
    except (ConfigError, TooFewClientsError) as error:
        _tell("failed", reason=str(error))
        raise


def link(
    experiment: Experiment,
    strategy: QuantizedFedAvg,
    grid: Any,
    *,
    tell: Callable[[str], None],
    replied: Replied = nobody,
) -> GridLink:
    """A link to clients that come when they come, over a grid that others made."""
    runtime = experiment.config.runtime

    def greet(exchange: Exchange) -> Roster:
        enough = experiment.config.clients if runtime.min_available is None else runtime.min_available
        return wait_for_clients(
            exchange,
            grid.get_node_ids,
            Desk(version=__version__, formats=codec.FORMATS, layout=strategy.layout.digest),
            expected=experiment.identities,
            wait=runtime.wait,
            enough=enough,
            tell=tell,
        )

    return GridLink(strategy, grid, greet, replied=replied)


def _tell(kind: str, **values: Any) -> None:
    print(events.line(kind, **values), flush=True)


def _tell_row(row: RoundRow) -> None:
    _tell("row", **asdict(row))
