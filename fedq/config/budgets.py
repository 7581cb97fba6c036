"""Rules about the clients' own budgets, and about the cost of an evaluation. Knows the schema alone."""

from collections.abc import Iterator
from typing import Any, Final

from fedq.config.client_level import protects_clients, protects_examples
from fedq.config.problem import Problem
from fedq.config.schema import Config
from fedq.core.limits import LEAST_EPSILON, MOST_EPSILON

OWN_DELTA: Final = 1e-5  # delta of an owner's own budget where the owner names none


def own_delta(epsilon: Any, delta: Any) -> Any:
    """The delta at which an owner's budget is counted; None where the owner sets no limit."""
    return OWN_DELTA if delta is None and epsilon is not None else delta


def own_limit_problems(epsilon: Any, delta: Any, *, where: str, policy: object = None) -> Iterator[Problem]:
    """What is wrong with the limits that a data owner sets for its own data.

    `where`: prefix of the keys in messages; `policy`: the policy file, None if there is none. A delta without an
    epsilon limits nothing.
    """
    if delta is not None and epsilon is None and policy is None:
        rule = "limits nothing without an epsilon"
        yield Problem(f"{where}delta", delta, rule, f"Add {where}epsilon=3.0, or a policy file")
    if epsilon is not None and (type(epsilon) not in (int, float) or not LEAST_EPSILON <= epsilon <= MOST_EPSILON):
        rule = f"must be a number in [{LEAST_EPSILON:g}, {MOST_EPSILON:g}]: the most that this data may ever spend"
        yield Problem(f"{where}epsilon", epsilon, rule, "Try 3.0")
    if delta is not None and (type(delta) is not float or not 0 < delta <= 0.1):
        rule = "must be a number above 0, at most 0.1: well below one over the number of your examples"
        yield Problem(f"{where}delta", delta, rule, "Try 0.00001")


def budget_problems(config: Config, names: list[str]) -> Iterator[Problem]:
    """What is wrong with `privacy.budgets`; `names` are the experiment's clients."""
    if not isinstance(config.privacy.budgets, dict):
        rule = "must be a mapping from clients to epsilons"
        yield Problem("privacy.budgets", config.privacy.budgets, rule, "Try privacy.budgets.0=3")
        return
    for name, value in config.privacy.budgets.items():
        key = f"privacy.budgets.{name}"
        if name not in names:
            fix = f"The experiment's names are {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
            yield Problem(key, value, "no client of the experiment", fix)
        elif type(value) not in (int, float) or not LEAST_EPSILON <= value <= MOST_EPSILON:
            yield Problem(key, value, f"must be an epsilon in [{LEAST_EPSILON:g}, {MOST_EPSILON:g}]", f"Try {key}=3")
    if config.privacy.budgets and config.runtime.name == "deployment":
        rule = "in a deployment each owner sets its budget in its node config, as epsilon=3.0"
        yield Problem("privacy.budgets", config.privacy.budgets, rule, "Leave it out")


def evaluation_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with `evaluate`."""
    p = config.privacy
    if config.evaluate == "off" and config.strategy.keep == "best":
        rule = "without an evaluation the best model is not known"
        yield Problem("evaluate", "off", rule, "Use evaluate=server, or strategy.keep=last")
    if config.evaluate != "dp":
        return
    if not protects_examples(config):
        rule = "noisy counts belong to privacy=example; without it clients may report exact scores"
        yield Problem("evaluate", "dp", rule, "Use evaluate=server, or privacy=example")
        return
    if protects_clients(config):
        rule = (
            "the noise on a client's counts hides one example and no client, but client-level DP is on (privacy=both)"
        )
        yield Problem("evaluate", "dp", rule, "Use evaluate=server or off, or privacy=example")
    if config.train.metric != "accuracy":
        rule = f"noisy counts are of right and wrong answers, and the metric is {config.train.metric}"
        yield Problem("evaluate", "dp", rule, "Use train.metric=accuracy, or evaluate=off")
    budgets = [p.target_epsilon, *p.budgets.values()] if isinstance(p.budgets, dict) else [p.target_epsilon]
    for budget in budgets:
        if isinstance(budget, int | float) and p.evaluation_epsilon > budget / 2:
            rule = f"is more than half of the budget {budget:g}, and training needs the rest"
            yield Problem("privacy.evaluation_epsilon", p.evaluation_epsilon, rule, f"Use {budget / 10:g}")
            return
