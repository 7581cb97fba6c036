"""A client on its owner's machine: node config and bundle in, `Client` out. Knows Flower's context; not messages.

What concerns the owner's files comes from the node config, which the owner wrote; what concerns the experiment comes
from the bundle and the run's overrides, which may choose only among what the bundle holds.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context

from fedq.app.bundle import overlay
from fedq.client import Client
from fedq.config import Config, ConfigError, Problem, compose, network, rules
from fedq.experiment import Experiment, Owner, build
from fedq.experiment.ledgers import LEDGER
from fedq.training.numerics import use_one_thread

ANYBODY = "*"  # the owner of a part of data that every machine has


@dataclass(frozen=True)
class Node:
    """What the owner of a node says of it: `--node-config 'name="clinic-a" data-path="..." state-dir="..."'`."""

    name: str | None = None
    partition: int | None = None
    data: Path | None = None
    state: Path | None = None

    @classmethod
    def read(cls, node_config: Mapping[str, Any]) -> "Node":
        """Raises `ConfigError`; keys that are not ours are left to others."""
        found: list[Problem] = []

        def typed(key: str, kind: type, example: str) -> Any:
            value = node_config.get(key)
            if value is not None and type(value) is not kind:
                found.append(Problem(f"node-config {key}", value, f"must be a {kind.__name__}", f"Use {key}={example}"))
            return value

        name = typed("name", str, '"clinic-a"')
        partition = typed("partition-id", int, "0")
        data = typed("data-path", str, '"/path/to/own/data"')
        state = typed("state-dir", str, '"/path/to/own/state"')
        for key, path in (("data-path", data), ("state-dir", state)):
            if isinstance(path, str) and not Path(path).expanduser().is_absolute():
                rule = "must be absolute: started in another folder, this node would begin with an empty ledger"
                found.append(Problem(f"node-config {key}", path, rule, f'Use {key}="/..."'))
        if name is None and partition is None:
            found.append(Problem("node-config name", None, "a client must say who it is", 'Use name="clinic-a"'))
        if found:
            raise ConfigError(found)
        return cls(name, partition, *(Path(p).expanduser() if p else None for p in (data, state)))

    def identity(self, config: Config) -> str:
        """The name, or the name of the partition; it must be one that the experiment knows."""
        names = rules.identities(config)
        if self.name is not None:
            if self.name in names:
                return self.name
            mend = f"The experiment's names are {', '.join(names[:5])}, ...; set names=[...] in it, or name in the node"
            raise ConfigError([Problem("node-config name", self.name, "no client of the experiment", mend)])
        if self.partition is None or not 0 <= self.partition < len(names):
            mend = f"Use 0 to {len(names) - 1}, or clients=N with a larger N"
            raise ConfigError(
                [Problem("node-config partition-id", self.partition, "no client of the experiment", mend)]
            )
        return names[self.partition]


def home() -> Path:
    """Where fedq keeps files on a machine that nobody configured otherwise: $FEDQ_HOME, else ~/.fedq."""
    return Path(os.environ.get("FEDQ_HOME") or Path.home() / ".fedq")


def simulated_clients(run_id: int) -> Path:
    """The run's folder of clients that share the server's machine, as in Flower's simulation engine."""
    return home() / "simulated" / str(run_id)


def client_of(context: Context) -> Client:
    """The client of this node, built from the bundle; raises `ConfigError` with all that is wrong."""
    use_one_thread()
    overrides = tuple(network.read(context.run_config.get(network.OVERRIDES)))
    node = Node.read(context.node_config)
    folder, run = overlay(), str(context.run_id)
    config = _config(overrides, folder)
    identity = node.identity(config)
    simulated = _in_simulation()
    owner = None if simulated and node.data is None else Owner(identity if node.data else ANYBODY, node.data)
    experiment = _experiment(overrides, folder, owner)
    if config.privacy.unit != "off" and config.privacy.noise == "seeded":
        rule = "noise that others can compute again protects nobody; a client outside of a test never adds it"
        raise ConfigError([Problem("privacy.noise", "seeded", rule, "Use privacy.noise=discrete")])
    if node.state is not None:
        return experiment.client(
            identity, folder=node.state / "runs" / run, run=run, ledger=node.state / LEDGER, durable=True
        )
    if not simulated:
        mend = "Start the SuperNode with --node-config '... state-dir=\"/path/to/own/state\"'"
        rule = "a client keeps its ledger, log and residual between messages, and this node's config names no place"
        raise ConfigError([Problem("node-config state-dir", None, rule, mend)])
    return experiment.client(identity, folder=simulated_clients(context.run_id) / identity, run=run, durable=True)


def _in_simulation() -> bool:
    """Flower's simulation engine runs clients in Ray actors; a SuperNode's client process knows no Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@lru_cache(maxsize=4)
def _config(overrides: tuple[str, ...], folder: Path | None) -> Config:
    return compose(list(overrides), overlay=folder)


@lru_cache(maxsize=4)
def _experiment(overrides: tuple[str, ...], folder: Path | None, owner: Owner | None) -> Experiment:
    """Built once in a process: a SuperNode's serves one message, an actor of a simulation serves many clients."""
    return build(_config(overrides, folder), owner=owner)
