"""Whether the owner of a node accepts a request, decided from public configuration alone.
Knows node configs, policies and plans; opens no data and no model.

If an owner sets any limit, everything that the owner does not mention is forbidden. Such a request is declined, and the
owner's log names the line that would allow it.
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
_READ: Final = 2**18  # bytes read from the end of the log: more lines than any limit counts
# Keys of the data group that are no options of the loader: its target, its path, and the public number of examples.
_NOT_CHOSEN: Final = ("_target_", "_paths_", "path", "nominal_examples")


def accepted(config: Config, node: Node, bundle: str) -> tuple[Policy | None, DPPlan | None]:
    """(the owner's policy, the plan under the owner's limits) for an accepted request; raises Declined for another."""
    policy = None if node.policy is None else policy_of(node.policy)
    if config.privacy.unit != "off" or policy is not None or node.limited:
        _check_rate(node, policy)
    if policy is not None:
        model = model_digest(config) if policy.models else ""  # finding its source imports its packages
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
    """The policy in the file; raises Declined("policy")."""
    try:
        return read_policy(path)
    except PolicyError as error:
        raise Declined("policy", str(error)) from None


def _check_counted(config: Config, node: Node) -> None:
    """Declined if the owner has a budget, but this client's ledger would not record the run."""
    if node.limited and not protects_examples(config):
        why = f"under privacy={config.privacy.unit} this client adds no noise of its own, so nothing bounds what leaves"
        raise Declined("budget", f"{why}, where the node config allows epsilon={node.epsilon:g} over all runs")


def _check_unsaid(config: Config, node: Node) -> None:
    """Declined if a request needs the permission of a policy, and the owner has a budget but no policy."""
    if config.privacy.noise == "gaussian":
        raise Declined("policy", 'privacy.noise=gaussian; a policy file with noise = "gaussian" would accept it')
    if chosen := _chosen(config, node):
        name, value = next(iter(chosen.items()))
        raise Declined("policy", f"the run chooses data.{name}={value!r}; a policy file lists what it may under [data]")


def _chosen(config: Config, node: Node) -> dict[str, Any]:
    """Options of the data loader that a request chooses; {} where the node's file is a prepared shard."""
    if node.data is not None and is_shard(node.data):
        return {}
    target = str(config.data.get("_target_"))
    own = getattr(loaders, target.removeprefix("fedq.data."), None) if target.startswith("fedq.data.") else None
    usual = {name: p.default for name, p in inspect.signature(own).parameters.items()} if callable(own) else {}
    options = {name: value for name, value in config.data.items() if name not in _NOT_CHOSEN}
    return {name: value for name, value in options.items() if name not in usual or value != usual[name]}


def _check_rate(node: Node, policy: Policy | None) -> None:
    """Declined if too many requests were refused or failed within an hour, also without limits of the owner.

    Repeated requests could be used to probe the data.
    """
    if node.state is None:
        return
    most = Policy.max_failures_an_hour if policy is None else policy.max_failures_an_hour
    found = failures_since(node.state / DECLINED, datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1))
    if found >= most:
        raise Declined("policy", f"{found} requests were {_TOO_MANY}, {most} are allowed (max_failures_an_hour)")


def failures_since(log: Path, begin: datetime.datetime) -> int:
    """Number of log lines since `begin`, without those that only report too many requests.

    A line quotes the request, so it is recognized by its beginning, which no request can choose.
    """
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _READ))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return sum(_time_of(line) >= begin for line in lines if _LIMITED.match(line) is None)


def _time_of(line: str) -> datetime.datetime:
    """The time of a line; a line without a time or a time zone, perhaps edited by hand, counts as old."""
    old = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    try:
        found = datetime.datetime.fromisoformat(line.partition(" ")[0])
    except ValueError:
        return old
    return found if found.tzinfo is not None else old


def _plan(config: Config, budget: float | None, delta: float | None) -> DPPlan | None:
    """The plan under these limits; None without DP on the client. Declined("budget") if no noise meets them."""
    try:
        return None if problems(config) else plan_of(config, budget, delta)
    except (ValueError, ArithmeticError) as error:
        raise Declined("budget", str(error)) from None


def _claims(config: Config, node: Node) -> tuple[str, float, float]:
    """(unit, epsilon, delta) of the protection of the owner's data: its own noise, else the server's, else none."""
    if protects_examples(config):
        plan = _plan(config, node.epsilon, node.delta)
        if plan is None:
            return "example", math.inf, config.privacy.target_delta
        return "example", requested_epsilon(config, plan), plan.delta
    if protects_clients(config):
        whole = None if problems(config) else client_level_plan(config)
        epsilon = math.inf if whole is None else min(whole.target_epsilon, whole.epsilon(whole.charges))
        return "client", epsilon, config.privacy.client.target_delta
    return "off", math.inf, 1.0
