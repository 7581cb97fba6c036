"""Builds the client on its owner's machine from node config and bundle. Knows Flower's context; not messages.

Paths of the owner's files come from the node config, which the owner wrote. The experiment comes from the bundle and
the run's overrides, which may choose only among the bundle's choices.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

from flwr.app import Context

from fedq.app.acceptance import ACCEPTS_ANYTHING, accepted, policy_of
from fedq.app.bundle import bundle_digest, overlay, running_bundle
from fedq.app.limits import count_request, deadline, memory_limit
from fedq.app.node_config import Node
from fedq.app.owned import OwnedClient
from fedq.app.warning import warn_owner
from fedq.client import Client, ClientState, Privacy
from fedq.client.state import note_declined
from fedq.config import Config, ConfigError, Problem, compose, network, problems
from fedq.config.client_level import protects_examples
from fedq.experiment import Experiment, Site, build
from fedq.experiment.ledgers import LEDGER, Account, ledger_name
from fedq.experiment.plans import plan_of
from fedq.flower import wire
from fedq.privacy import Declined, DPPlan, SecureRandom, limits, tip_of
from fedq.privacy.mechanisms import SEEDED
from fedq.training.numerics import use_one_thread

TIP_BESIDE: Final = (
    "the ledger's tip lies beside the ledger: if both are restored or deleted, nobody notices. Name a folder on "
    'another disk with head-dir="/..." in the node config, or with head= in the policy file'
)
ANYBODY: Final = "*"  # owner of a part of data that every machine has
HELLO_SECONDS: Final = 120.0  # a handshake starts Python and reads a ledger
MESSAGE_SECONDS: Final = 3600.0  # the default time that a server waits for a round
MOST_NOTED: Final = 2000  # longest text of a request's overrides in a note, in characters


def home() -> Path:
    """The default folder of fedq's files on a machine: $FEDQ_HOME, else ~/.fedq."""
    return Path(os.environ.get("FEDQ_HOME") or Path.home() / ".fedq")


def simulated_clients(run_id: int) -> Path:
    """The run's folder of clients that share the server's machine, as in Flower's simulation engine."""
    return home() / "simulated" / str(run_id)


def client_of(context: Context) -> Client | OwnedClient:
    """The client of this node, built from the bundle. Raises `ConfigError` with all problems.

    Raises Declined for a request that the owner does not accept, before any model or data are opened. With DP, model
    and data are opened only after a request was admitted and its spend recorded.
    """
    use_one_thread()
    overrides = tuple(network.read(context.run_config.get(network.OVERRIDES)))
    node = Node.read(context.node_config)
    folder, run = overlay(), str(context.run_id)
    config = _config(overrides, folder)
    identity = node.identity(config)
    bundle = _digest(running_bundle())
    try:
        policy, plan = accepted(config, node, bundle)
    except Declined as declined:
        declined.identity = identity
        raise
    if config.privacy.unit != "off" and config.privacy.noise == SEEDED:
        rule = "others can compute this noise again, so it protects nobody; a client outside a test never adds it"
        raise ConfigError([Problem("privacy.noise", SEEDED, rule, "Use privacy.noise=discrete")])
    simulated = _in_simulation()
    if node.state is None and not simulated:
        hint = "Start the SuperNode with --node-config '... state-dir=\"/path/to/own/state\"'"
        rule = "a client keeps its ledger, log and residual between messages, and needs a folder for them"
        raise ConfigError([Problem("node-config state-dir", None, rule, hint)])
    whose = identity if node.data else ANYBODY
    owner = None
    if not (simulated and node.data is None):
        owner = Site(whose, node.data, *limits(policy, node.epsilon, node.delta))
    if node.state is None:
        files = simulated_clients(context.run_id) / identity
        return _experiment(overrides, folder, owner).client(identity, folder=files, run=run, durable=True)
    files = node.state / "runs" / run
    tip = tip_of(node.state / LEDGER, policy, node.tips)
    account = Account(node.state / LEDGER, tip, bundle)

    def built() -> Client:
        experiment = _experiment(overrides, folder, owner)
        return experiment.client(identity, folder=files, run=run, account=account, durable=True)

    client: Client | OwnedClient
    if config.privacy.unit == "off" or owner is None:
        client = built()
    else:
        if found := problems(config):
            raise ConfigError(found)
        privacy = None if plan is None else _privacy(config, plan, account, owner, run)
        client = OwnedClient(identity, ClientState(files, durable=True), built, privacy)
    client.on_training = partial(count_request, files, most=None if policy is None else policy.max_rounds)
    if policy is None and not node.limited:
        warn_owner(client.state, ACCEPTS_ANYTHING)
    if tip is None and protects_examples(config):
        warn_owner(client.state, TIP_BESIDE)
    return client


def prepare(context: Context) -> None:
    """Fill this process' caches with what follows from the run's public configuration: its config and its DP plan.

    Within the bounds of a handshake. Opens no data, runs no code of the bundle, and decides nothing.
    """
    with bounds(context, wire.HELLO):
        use_one_thread()
        node = Node.read(context.node_config)
        config = _config(tuple(network.read(context.run_config.get(network.OVERRIDES))), overlay())
        policy = None if node.policy is None else policy_of(node.policy)
        if not problems(config):
            plan_of(
                config, *limits(policy, node.epsilon, node.delta)
            )  # under DP it imports Opacus and calibrates noise


def _privacy(config: Config, plan: DPPlan, account: Account, owner: Site, run: str) -> Privacy:
    """This client's side of DP, from public configuration alone."""
    name, holdout = ledger_name(config, owner), config.train.holdout if config.evaluate == "dp" else 0.0
    return Privacy(plan, account.ledger, SecureRandom(), name, run, account.bundle, account.tip, holdout)


@contextmanager
def bounds(context: Context, kind: str) -> Iterator[None]:
    """Limits of one message on this machine: always a deadline, and the limits of the owner's policy."""
    if _in_simulation():
        yield
        return
    node = Node.read(context.node_config)
    policy = None if node.policy is None else policy_of(node.policy)
    asked = None if policy is None else policy.max_seconds
    usual = HELLO_SECONDS if kind == wire.HELLO else MESSAGE_SECONDS
    seconds = usual if asked is None else min(asked, usual) if kind == wire.HELLO else asked
    with deadline(seconds), memory_limit(None if policy is None else policy.max_memory):
        yield


def note(context: Context, why: str) -> None:
    """Record for the owner a request that was refused or failed, and why. Does nothing without a state-dir."""
    state = context.node_config.get("state-dir")
    if isinstance(state, str) and Path(state).expanduser().is_absolute():
        asked = str(context.run_config.get(network.OVERRIDES))[:MOST_NOTED]
        note_declined(Path(state).expanduser(), f"run {context.run_id}", f"{why}; asked for {asked}")


@lru_cache(maxsize=4)
def _digest(folder: Path | None) -> str:
    if folder is None:
        return ""
    for cache in list(folder.rglob("__pycache__")):  # compiled modules would run instead of the reviewed source
        shutil.rmtree(cache, ignore_errors=True)
    return bundle_digest(folder)


def _in_simulation() -> bool:
    """Whether this process is a Ray actor of Flower's simulation engine; a SuperNode's process does not use Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@lru_cache(maxsize=4)
def _config(overrides: tuple[str, ...], folder: Path | None) -> Config:
    return compose(list(overrides), overlay=folder)


@lru_cache(maxsize=4)
def _experiment(overrides: tuple[str, ...], folder: Path | None, owner: Site | None) -> Experiment:
    """The experiment, cached: an actor of a simulation serves many clients, a SuperNode's process one message."""
    return build(_config(overrides, folder), owner=owner)
