"""A client on its owner's machine: node config and bundle in, `Client` out. Knows Flower's context; not messages.

What concerns the owner's files comes from the node config, which the owner wrote; what concerns the experiment comes
from the bundle and the run's overrides, which may choose only among what the bundle holds.
"""

import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context

from fedq.app.bundle import bundle_digest, overlay, running_bundle
from fedq.app.misspelt import misspelt
from fedq.client import Client
from fedq.client.state import note_declined
from fedq.config import Config, ConfigError, Problem, compose, network, problems, public
from fedq.config.budgets import own_delta, own_limit_problems
from fedq.config.client_level import protects_clients, protects_examples
from fedq.experiment import Experiment, Owner, build
from fedq.experiment.client_level import client_level_plan
from fedq.experiment.digests import model_digest
from fedq.experiment.ledgers import LEDGER, Account
from fedq.experiment.plans import claimed, plan_of
from fedq.privacy import Asked, Declined, Policy, PolicyError, limits, read_policy, require
from fedq.training.numerics import use_one_thread

ANYBODY = "*"  # the owner of a part of data that every machine has


@dataclass(frozen=True)
class Node:
    """What the owner of a node says of it: `--node-config 'name="clinic-a" data-path="..." state-dir="..."'`."""

    name: str | None = None
    partition: int | None = None
    data: Path | None = None
    state: Path | None = None
    policy: Path | None = None  # the weakest privacy that the owner accepts
    epsilon: float | None = None  # the owner's own budget, over all runs
    delta: float | None = None  # at which that budget is counted; 1e-5 where an epsilon is given alone

    @classmethod
    def read(cls, node_config: Mapping[str, Any]) -> "Node":
        """Raises `ConfigError`; keys that are not ours are left to others, unless they are ours but for a slip."""
        found = list(misspelt(node_config))

        def typed(key: str, kind: type, example: str) -> Any:
            value = node_config.get(key)
            if value is not None and type(value) is not kind:
                found.append(Problem(f"node-config {key}", value, f"must be a {kind.__name__}", f"Use {key}={example}"))
            return value

        name = typed("name", str, '"clinic-a"')
        partition = typed("partition-id", int, "0")
        data = typed("data-path", str, '"/path/to/own/data"')
        state = typed("state-dir", str, '"/path/to/own/state"')
        policy = typed("policy", str, '"/path/to/policy.toml"')
        epsilon = node_config.get("epsilon")
        delta = own_delta(epsilon, node_config.get("delta"))
        found += own_limit_problems(epsilon, delta, where="node-config ")
        for key, path in (("data-path", data), ("state-dir", state), ("policy", policy)):
            if isinstance(path, str) and not Path(path).expanduser().is_absolute():
                rule = "must be absolute: started in another folder, this node would begin with an empty ledger"
                found.append(Problem(f"node-config {key}", path, rule, f'Use {key}="/..."'))
        if name is None and partition is None:
            found.append(Problem("node-config name", None, "a client must say who it is", 'Use name="clinic-a"'))
        if found:
            raise ConfigError(found)
        own_data, own_state, own_policy = (Path(p).expanduser() if p else None for p in (data, state, policy))
        budget = None if epsilon is None else float(epsilon)
        return cls(name, partition, own_data, own_state, own_policy, budget, delta)

    def identity(self, config: Config) -> str:
        """The name, or the name of the partition; it must be one that the experiment knows."""
        names = public.identities(config)
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
    """The client of this node, built from the bundle; raises `ConfigError` with all that is wrong.

    What is weaker than the owner's policy is Declined before a model or any data of the owner is opened.
    """
    use_one_thread()
    overrides = tuple(network.read(context.run_config.get(network.OVERRIDES)))
    node = Node.read(context.node_config)
    folder, run = overlay(), str(context.run_id)
    config = _config(overrides, folder)
    identity = node.identity(config)
    bundle = _digest(running_bundle())
    try:
        policy = None if node.policy is None else _required(node, node.policy, config, bundle)
        budget, delta = limits(policy, node.epsilon, node.delta)
        _counted(config, node)
        _checked_plan(config, budget, delta)
    except Declined as declined:
        if node.state is not None:
            note_declined(node.state, config.name, str(declined))
        declined.identity = identity
        raise
    if config.privacy.unit != "off" and config.privacy.noise == "seeded":
        rule = "noise that others can compute again protects nobody; a client outside of a test never adds it"
        raise ConfigError([Problem("privacy.noise", "seeded", rule, "Use privacy.noise=discrete")])
    simulated = _in_simulation()
    whose = identity if node.data else ANYBODY
    owner = None if simulated and node.data is None else Owner(whose, node.data, budget, delta)
    experiment = _experiment(overrides, folder, owner)
    if node.state is not None:
        head = Path(policy.head) if policy is not None and policy.head else None
        account = Account(node.state / LEDGER, head, bundle)
        client = experiment.client(identity, folder=node.state / "runs" / run, run=run, account=account, durable=True)
        client.state.owner = (node.state, config.name)
        return client
    if not simulated:
        mend = "Start the SuperNode with --node-config '... state-dir=\"/path/to/own/state\"'"
        rule = "a client keeps its ledger, log and residual between messages, and this node's config names no place"
        raise ConfigError([Problem("node-config state-dir", None, rule, mend)])
    return experiment.client(identity, folder=simulated_clients(context.run_id) / identity, run=run, durable=True)


def _required(node: Node, path: Path, config: Config, bundle: str) -> Policy:
    """The owner's policy, where the run is as strong as it asks; Declined where not, or where it cannot be read."""
    try:
        policy = read_policy(path)
    except PolicyError as error:
        raise Declined("policy", str(error)) from None
    model = model_digest(config) if policy.models else ""  # finding its source imports the packages it is in
    unit, epsilon, delta = _claims(config, node)
    rounds, steps = public.rounds_asked(config), public.steps_asked(config)
    require(policy, Asked(unit, epsilon, delta, node.data, model, bundle, config.privacy.noise, rounds, steps))
    return policy


def _counted(config: Config, node: Node) -> None:
    """Declined("budget") where the owner set a limit and nothing of the run would enter this client's ledger."""
    if (node.epsilon is None and node.delta is None) or protects_examples(config):
        return
    limit = " and ".join(f"{k}={v:g}" for k, v in (("epsilon", node.epsilon), ("delta", node.delta)) if v is not None)
    why = f"privacy={config.privacy.unit} has this client add no noise of its own: what leaves has no bound"
    raise Declined("budget", f"{why}, where the node config allows {limit} over all runs")


def _checked_plan(config: Config, budget: float | None, delta: float | None) -> Any:
    """The plan under these limits, None where there is none; Declined("budget") where no noise keeps to them."""
    try:
        return None if problems(config) else plan_of(config, budget, delta)
    except (ValueError, ArithmeticError) as error:
        raise Declined("budget", str(error)) from None


def _claims(config: Config, node: Node) -> tuple[str, float, float]:
    """(unit, epsilon, delta) of what protects the owner's data: its own noise, else the server's, else none."""
    if protects_examples(config):
        plan = _checked_plan(config, node.epsilon, node.delta)
        if plan is None:
            return "example", math.inf, config.privacy.target_delta
        return "example", claimed(config, plan), plan.delta
    if protects_clients(config):
        whole = None if problems(config) else client_level_plan(config)
        epsilon = math.inf if whole is None else min(whole.target_epsilon, whole.epsilon(whole.charges))
        return "client", epsilon, config.privacy.client_target_delta
    return "off", math.inf, 1.0


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
def _experiment(overrides: tuple[str, ...], folder: Path | None, owner: Owner | None) -> Experiment:
    """Built once in a process: a SuperNode's serves one message, an actor of a simulation serves many clients."""
    return build(_config(overrides, folder), owner=owner)
