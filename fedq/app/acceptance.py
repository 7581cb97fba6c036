"""Whether a request is within what the owner of a node accepts, decided from public configuration alone.
Knows node configs, policies and plans; opens no data and no model.

What an owner who set any limit left unsaid is not permission: a request that needs it is declined, and the owner's log
says which line would allow it.
"""

import datetime
import inspect
import math
import re
from pathlib import Path
from typing import Any, Final

from fedq import data as loaders
from fedq.app.node_config import Node
from fedq.client.state import DECLINED
from fedq.config import Config, problems, public
from fedq.config.client_level import protects_clients, protects_examples
from fedq.data import is_shard
from fedq.experiment.client_level import client_level_plan
from fedq.experiment.digests import model_digest
from fedq.experiment.plans import plan_of, requested_epsilon
from fedq.privacy import Asked, Declined, DPPlan, Policy, PolicyError, limits, read_policy, require

ACCEPTS_ANYTHING: Final = (
    "this client has no policy, epsilon or delta in its node config: it accepts privacy=off, where an update by itself "
    "can tell a lot about the data. docs/deploy.md shows a policy file"
)
_TOO_MANY: Final = "refused or failed within an hour"
_LIMITED: Final = re.compile(rf"\S+ 'run -?\d+' \w+(?:\.\w+)?(?:, round -?\d+)?: policy: \d+ requests were {_TOO_MANY}")
_READ: Final = 2**18  # bytes of the log's end: more lines than any limit counts
# Of the config's data: which loader, where (the node config's own word), and how many examples are publicly assumed.
_NOT_CHOSEN: Final = ("_target_", "_paths_", "path", "nominal_examples")


def accepted(config: Config, node: Node, bundle: str) -> tuple[Policy | None, DPPlan | None]:
    """(the owner's policy, the plan under the owner's limits) of a request that is accepted; else Declined."""
    policy = None if node.policy is None else policy_of(node.policy)
    if config.privacy.unit != "off" or policy is not None or node.limited:
        _check_rate(node, policy)
    if policy is not None:
        model = model_digest(config) if policy.models else ""  # finding its source imports the packages it is in
        unit, epsilon, delta = _claims(config, node)
        rounds, steps = public.rounds_asked(config), public.steps_asked(config)
        chosen = _chosen(config, node)
        noise = config.privacy.noise
        require(policy, Asked(unit, epsilon, delta, node.data, model, bundle, noise, rounds, steps, chosen))
    elif node.limited:
        _check_unsaid(config, node)
    _check_counted(config, node)
    return policy, _plan(config, *limits(policy, node.epsilon, node.delta))


def policy_of(path: Path) -> Policy:
    try:
        return read_policy(path)
    except PolicyError as error:
        raise Declined("policy", str(error)) from None


def _check_counted(config: Config, node: Node) -> None:
    """Declined where the owner has a budget and nothing of the run would enter this client's ledger."""
    if node.limited and not protects_examples(config):
        why = f"privacy={config.privacy.unit} has this client add no noise of its own: what leaves has no bound"
        raise Declined("budget", f"{why}, where the node config allows epsilon={node.epsilon:g} over all runs")


def _check_unsaid(config: Config, node: Node) -> None:
    """Declined where an owner with a budget and no policy would have to have said more."""
    if config.privacy.noise == "gaussian":
        raise Declined("policy", 'privacy.noise=gaussian; a policy file with noise = "gaussian" would accept it')
    if chosen := _chosen(config, node):
        name, value = next(iter(chosen.items()))
        raise Declined("policy", f"the run chooses data.{name}={value!r}; a policy file lists what it may under [data]")


def _chosen(config: Config, node: Node) -> dict[str, Any]:
    """What a request chooses of the loader of this node's data; {} where a file holds the examples as they are."""
    if node.data is not None and is_shard(node.data):
        return {}
    target = str(config.data.get("_target_"))
    own = getattr(loaders, target.removeprefix("fedq.data."), None) if target.startswith("fedq.data.") else None
    usual = {name: p.default for name, p in inspect.signature(own).parameters.items()} if callable(own) else {}
    options = {name: value for name, value in config.data.items() if name not in _NOT_CHOSEN}
    return {name: value for name, value in options.items() if name not in usual or value != usual[name]}


def _check_rate(node: Node, policy: Policy | None) -> None:
    """Declined once too many requests were refused or failed within an hour, also of an owner without limits.

    Asking on and on is asking about data.
    """
    if node.state is None:
        return
    most = Policy.max_failures_an_hour if policy is None else policy.max_failures_an_hour
    found = failures_since(node.state / DECLINED, datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1))
    if found >= most:
        raise Declined("policy", f"{found} requests were {_TOO_MANY}, {most} are allowed (max_failures_an_hour)")


def failures_since(log: Path, begin: datetime.datetime) -> int:
    """Lines of the log from then on, those apart that say no more than that there were too many.

    A line quotes what was asked for, so it is told by its beginning, which no request can choose.
    """
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _READ))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return sum(_time_of(line) >= begin for line in lines if _LIMITED.match(line) is None)


def _time_of(line: str) -> datetime.datetime:
    """Of an editor's hand, without a time or its zone: counts as old."""
    old = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    try:
        found = datetime.datetime.fromisoformat(line.partition(" ")[0])
    except ValueError:
        return old
    return found if found.tzinfo is not None else old


def _plan(config: Config, budget: float | None, delta: float | None) -> DPPlan | None:
    """The plan under these limits, None where there is none; Declined("budget") where no noise keeps to them."""
    try:
        return None if problems(config) else plan_of(config, budget, delta)
    except (ValueError, ArithmeticError) as error:
        raise Declined("budget", str(error)) from None


def _claims(config: Config, node: Node) -> tuple[str, float, float]:
    """(unit, epsilon, delta) of what protects the owner's data: its own noise, else the server's, else none."""
    if protects_examples(config):
        plan = _plan(config, node.epsilon, node.delta)
        if plan is None:
            return "example", math.inf, config.privacy.target_delta
        return "example", requested_epsilon(config, plan), plan.delta
    if protects_clients(config):
        whole = None if problems(config) else client_level_plan(config)
        epsilon = math.inf if whole is None else min(whole.target_epsilon, whole.epsilon(whole.charges))
        return "client", epsilon, config.privacy.client_target_delta
    return "off", math.inf, 1.0
