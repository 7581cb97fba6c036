"""A client on its owner's machine: node config and bundle in, `Client` out. Knows Flower's context; not messages.

What concerns the owner's files comes from the node config, which the owner wrote; what concerns the experiment comes
from the bundle and the run's overrides, which may choose only among what the bundle holds.
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
from fedq.flower import wire
from fedq.privacy import Declined, DPPlan, SecureRandom, limits, tip_of
from fedq.training.numerics import use_one_thread

TIP_BESIDE: Final = (
    "the ledger's tip lies beside the ledger: who restores or deletes both is not noticed. Name a folder on another "
    'disk with head-dir="/..." in the node config, or with head= in the policy file'
)
ANYBODY: Final = "*"  # the owner of a part of data that every machine has
HELLO_SECONDS: Final = 120.0  # a handshake starts Python and reads a ledger
MESSAGE_SECONDS: Final = 3600.0  # as long as a server waits for a round by default
MOST_NOTED: Final = 2000  # characters of a request's overrides in a note


def home() -> Path:
    """Where fedq keeps files on a machine that nobody configured otherwise: $FEDQ_HOME, else ~/.fedq."""
    return Path(os.environ.get("FEDQ_HOME") or Path.home() / ".fedq")


def simulated_clients(run_id: int) -> Path:
    """The run's folder of clients that share the server's machine, as in Flower's simulation engine."""
    return home() / "simulated" / str(run_id)


def client_of(context: Context) -> Client | OwnedClient:
    """The client of this node, built from the bundle; raises `ConfigError` with all that is wrong.

    What the owner does not accept is Declined before a model or any data of the owner is opened. Under a privacy unit
    neither is opened here at all, but when a request was admitted and paid for.
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
    if config.privacy.unit != "off" and config.privacy.noise == "seeded":
        rule = "noise that others can compute again protects nobody; a client outside of a test never adds it"
        raise ConfigError([Problem("privacy.noise", "seeded", rule, "Use privacy.noise=discrete")])
    simulated = _in_simulation()
    if node.state is None and not simulated:
        hint = "Start the SuperNode with --node-config '... state-dir=\"/path/to/own/state\"'"
        rule = "a client keeps its ledger, log and residual between messages, and this node's config names no place"
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


def _privacy(config: Config, plan: DPPlan, account: Account, owner: Site, run: str) -> Privacy:
    """This client's side of DP, from public configuration alone."""
    name, holdout = ledger_name(config, owner), config.train.holdout if config.evaluate == "dp" else 0.0
    return Privacy(plan, account.ledger, SecureRandom(), name, run, account.bundle, account.tip, holdout)


@contextmanager
def bounds(context: Context, kind: str) -> Iterator[None]:
    """What one message may take of this machine: a deadline always, and what the owner's policy says beside."""
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
    """For the owner: who asked for what, when, and why it was refused or failed. Does nothing without a state-dir."""
    state = context.node_config.get("state-dir")
    if isinstance(state, str) and Path(state).expanduser().is_absolute():
        asked = str(context.run_config.get(network.OVERRIDES))[:MOST_NOTED]
        note_declined(Path(state).expanduser(), f"run {context.run_id}", f"{why}; asked for {asked}")


@lru_cache(maxsize=4)
def _digest(folder: Path | None) -> str:
    if folder is None:
        return ""
    for cache in list(folder.rglob("__pycache__")):  # what a bundle brings compiled would run in place of what was read
        shutil.rmtree(cache, ignore_errors=True)
    return bundle_digest(folder)


def _in_simulation() -> bool:
    """Flower's simulation engine runs clients in Ray actors; a SuperNode's client process knows no Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@lru_cache(maxsize=4)
def _config(overrides: tuple[str, ...], folder: Path | None) -> Config:
    return compose(list(overrides), overlay=folder)


@lru_cache(maxsize=4)
def _experiment(overrides: tuple[str, ...], folder: Path | None, owner: Site | None) -> Experiment:
    """Built once in a process: a SuperNode's serves one message, an actor of a simulation serves many clients."""
    return build(_config(overrides, folder), owner=owner)
