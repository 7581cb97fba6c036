"""The server inside Flower's ServerApp process: runs the experiment of a bundle and writes a run folder on this host.

Knows Flower's grid and context; not how the process was started. It prints events, which the user who started the run
can follow. The run folder stays on this host.
"""

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flwr.app import Context

from fedq import __version__, codec
from fedq.app.bundle import overlay
from fedq.app.node import home, simulated_clients
from fedq.app.serving import serve
from fedq.artifacts.publication import write_publication
from fedq.artifacts.run_artifacts import ClientFiles
from fedq.config import ConfigError, Problem, compose, network
from fedq.config.config_file import write_config
from fedq.core.wording import size
from fedq.experiment import SERVER, Experiment, build
from fedq.flower import private as flower
from fedq.results import Result, RoundRow, events, new_run_folder
from fedq.results.result import INSECURE_LINK
from fedq.server import GridLink, Roster, Strategy
from fedq.server.link import Replied, nobody
from fedq.server.node_names import FILE as NODE_NAMES
from fedq.server.node_names import NodeNames, fingerprint_of_node, read_node_names
from fedq.server.roster import (
    BudgetSpentError,
    Exchange,
    Handshake,
    LinkLostError,
    TooFewClientsError,
    wait_for_clients,
)
from fedq.training.numerics import use_one_thread


def serve_run(grid: Any, context: Context) -> None:
    """Run the experiment. An error is reported and raised again, so that Flower marks the run as failed."""
    use_one_thread()
    simulated = flower.is_in_memory(grid)
    tell = Events() if context.run_config.get(EVENTS) else Words()
    try:
        overrides = network.read(context.run_config.get(network.OVERRIDES))
        config = compose(overrides, overlay=overlay())
        if simulated:  # its nodes are available at once, or never
            config = replace(config, runtime=replace(config.runtime, wait=min(config.runtime.wait, _SIMULATED_WAIT)))
        experiment = build(config, owner=None if simulated else SERVER)
        # An in-memory grid only has nodes of this machine.
        names = NodeNames(trusted=True) if simulated else _node_names()
        folder = new_run_folder(os.environ.get("FEDQ_OUTPUTS") or home() / "outputs", config.name)
        write_config(config, folder / "config.yaml")
        tell.folder(folder)
        strategy, clients = experiment.strategy(), simulated_clients(context.run_id)
        try:
            result = serve(
                experiment,
                strategy,
                link(experiment, strategy, grid, tell=tell.note, names=names),
                folder=folder,
                watch=tell.row,
                clients=ClientFiles(clients, str(context.run_id)) if simulated else None,
            )
        finally:
            if simulated and clients.is_dir():
                shutil.move(clients, folder / "clients")
        if context.run_config.get(INSECURE):
            result = replace(result, link=INSECURE_LINK)
            result.write(folder)
        write_publication(folder, result)  # again, because the folder now holds the clients' files
        tell.result(result)
    except (ConfigError, TooFewClientsError, LinkLostError, OSError) as error:
        words = f"{error}. Flower simulates as many nodes as you say: {_NODES}" if _too_few(error, simulated) else error
        tell.failed(str(words), budget=isinstance(error, BudgetSpentError))
        raise


class Events:
    """Prints events, for a fedq that follows the run from another machine."""

    def folder(self, folder: Path) -> None:
        self._say("folder", host=socket.gethostname(), path=str(folder))

    def note(self, text: str) -> None:
        self._say("note", text=text)

    def row(self, row: RoundRow) -> None:
        self._say("row", **asdict(row))

    def result(self, result: Result) -> None:
        self._say("result", **result.to_dict())

    def failed(self, reason: str, *, budget: bool) -> None:
        """`budget`: the run failed for lack of privacy budget, which has its own exit status."""
        self._say("failed", reason=reason, **({"budget": True} if budget else {}))

    def _say(self, kind: str, **values: Any) -> None:
        print(events.line(kind, **values), flush=True)


class Words(Events):
    """Prints text, for a person who reads the log of `flwr run`."""

    def _say(self, kind: str, **values: Any) -> None:
        if kind == "row":
            score = values["accuracy"] if values["accuracy"] is not None else values["metric_value"]
            sent = size(values["bytes_up"] + values["bytes_down"])
            shown = "not evaluated" if score is None else f"{score:.4f}"
            lost = f", {values['lost']} lost: {', '.join(values['reasons'])}" if values["lost"] else ""
            short = f", {len(values['clipped'])} clipped" if values["clipped"] else ""
            text = f"round {values['round']}: {shown}, {values['clients']} replies{lost}{short}, {sent}"
        elif kind == "result":
            text = "; ".join(f"{what}: {fact}" for what, fact in Result(**values).facts().items())
        else:
            text = "; ".join(str(v) for v in values.values() if v is not True)
        print(f"fedq: {text}", flush=True)


EVENTS = "events"  # a key of the run config: set by a fedq that follows the run
INSECURE = "insecure"  # a key of the run config: the run was started over a connection without TLS
_SIMULATED_WAIT = 30.0
_NODES = "flwr run . --federation-config num-supernodes=N"


def _node_names() -> NodeNames:
    path = home() / NODE_NAMES
    try:
        return read_node_names(path)
    except ValueError as error:
        hint = "Give each name the line of its client's .pub file, or remove the file"
        raise ConfigError([Problem(NODE_NAMES, path, str(error).removeprefix(f"{path}: "), hint)]) from None


def _too_few(error: Exception, simulated: bool) -> bool:
    return simulated and isinstance(error, TooFewClientsError)


def link(
    experiment: Experiment,
    strategy: Strategy,
    grid: Any,
    *,
    tell: Callable[[str], None],
    replied: Replied = nobody,
    names: NodeNames,
) -> GridLink:
    """A link over a Flower grid to clients that may connect at any time.

    `names`: the nodes that may use each client's name.
    """
    runtime = experiment.config.runtime

    keys: dict[int, str] = {}

    def nodes() -> list[int]:
        found = flower.node_keys(grid)
        keys.update({node: fingerprint_of_node(key) for node, key in found.items() if node not in keys})
        return list(found)

    def greet(exchange: Exchange) -> Roster:
        enough = experiment.config.clients if runtime.min_available is None else runtime.min_available
        return wait_for_clients(
            exchange,
            nodes,
            Handshake(
                version=__version__,
                formats=codec.FORMATS,
                layout=strategy.layout.digest,
                private=experiment.claims_privacy,
                names=names,
                key_of=lambda node: keys.get(node, ""),
            ),
            expected=experiment.identities,
            wait=runtime.wait,
            enough=enough,
            tell=tell,
        )

    return GridLink(strategy, grid, greet, replied=replied)
