"""Run clients in Flower's simulation engine, on Ray. Describes how an actor builds its clients."""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from fedq.app.answer import client_app
from fedq.app.host import link
from fedq.client import Client
from fedq.config import Problem, compose
from fedq.experiment import Experiment, build, client_folder
from fedq.flower import private as flower
from fedq.server import GridLink, Strategy
from fedq.server.link import Replied
from fedq.server.node_names import NodeNames
from fedq.training.numerics import use_one_thread

_RESOURCES = {"num_cpus": 1, "num_gpus": 0}


def problems(address: str | None) -> list[Problem]:
    """The problems that prevent this machine from using Ray, or from reaching the cluster at HOST:PORT."""
    if importlib.util.find_spec("ray") is None:
        return [Problem("runtime", "ray", "Ray is not installed", 'Run pip install "fedq[ray]"')]
    host, _, port = (address or "").rpartition(":")
    if (
        host and port.isdecimal() and not host.startswith("ray:")
    ):  # checked here, since Ray itself would try for minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            rule = f"no Ray cluster answers there ({error})"
            return [Problem("runtime.address", address, rule, "Start it with `ray start --head`, or use null")]
    return []


@dataclass(frozen=True)
class ActorClients:
    """How each of Ray's actors builds a client, as text and paths without objects."""

    overrides: tuple[str, ...]
    overlay: str | None
    path: tuple[str, ...]
    folder: str  # of the run; on a cluster, every machine must be able to read it

    def __call__(self, context: Context) -> Client:
        use_one_thread()
        missing = [entry for entry in self.path if entry not in sys.path]
        sys.path[:0] = missing
        experiment = _experiment(self.overrides, self.overlay)
        name, folder = experiment.identities[int(context.node_config["partition-id"])], Path(self.folder)
        # Another actor may handle this client's next message, so its state must be on disk.
        return experiment.client(name, folder=client_folder(folder, name), run=folder.name, durable=True)


@lru_cache(maxsize=2)
def _experiment(overrides: tuple[str, ...], overlay: str | None) -> Experiment:
    return build(compose(list(overrides), overlay=Path(overlay) if overlay else None))


@contextmanager
def ray_link(
    experiment: Experiment, strategy: Strategy, folder: Path, *, replied: Replied, tell: Callable[[str], None]
) -> Iterator[GridLink]:
    """A context with a running engine that has one node for each client."""
    config = experiment.config
    package = str(
        Path(__file__).resolve().parents[2]
    )  # the same fedq as in this process, wherever it was imported from
    clients = ActorClients(
        tuple(config.overrides), config.overlay, (package, *filter(None, sys.path)), str(folder.absolute())
    )
    environment = {"PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    with flower.simulation(
        client_app(clients),
        config.clients,
        address=config.runtime.address,
        resources={**_RESOURCES, **config.runtime.client_resources},
        environment=environment,
    ) as grid:
        yield link(experiment, strategy, grid, tell=tell, replied=replied, names=NodeNames(trusted=True))
