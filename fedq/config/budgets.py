"""The rules about budgets of clients' own. Knows the schema; not accountants, ledgers or policies."""

from collections.abc import Iterator

from fedq.config.problem import Problem
from fedq.config.schema import Config

LEAST, MOST = 0.05, 1e4  # as privacy.target_epsilon


def budget_problems(config: Config, names: list[str]) -> Iterator[Problem]:
    """What is wrong with `privacy.budgets`; `names` are the experiment's clients."""
    if not isinstance(config.privacy.budgets, dict):
        rule = "must be a mapping from clients to epsilons"
        yield Problem("privacy.budgets", config.privacy.budgets, rule, "Try privacy.budgets.0=3")
        return
    for name, value in config.privacy.budgets.items():
        key = f"privacy.budgets.{name}"
        if name not in names:
            mend = f"The experiment's names are {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
            yield Problem(key, value, "no client of the experiment", mend)
        elif type(value) not in (int, float) or not LEAST <= value <= MOST:
            yield Problem(key, value, f"must be an epsilon in [{LEAST:g}, {MOST:g}]", f"Try {key}=3")
    if config.privacy.budgets and config.runtime.name == "deployment":
        rule = "in a deployment each owner says it in its node config, as epsilon=3.0"
        yield Problem("privacy.budgets", config.privacy.budgets, rule, "Leave it out")
