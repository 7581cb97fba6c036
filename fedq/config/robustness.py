"""Rules about defences against lying clients: weights, bounds, robust aggregates. Knows the schema alone."""

import math
from collections.abc import Iterator

from fedq.config.client_level import protects_clients
from fedq.config.problem import Problem
from fedq.config.public import cohort_size, identities
from fedq.config.schema import Config

_FEWEST = 3  # fewest updates with which a robust aggregate can outvote a minority
_SPARSE = ("topk", "randk")


def weighs_by_examples(config: Config) -> bool:
    """Whether a client with more examples counts more."""
    return config.strategy.weighting == "examples" and config.privacy.unit == "off" and not is_robust(config)


def is_robust(config: Config) -> bool:
    """Whether the aggregate is not the weighted mean."""
    return config.strategy.aggregate != "mean"


def robustness_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with weights, the longest update and the aggregate."""
    yield from _weights(config)
    longest = config.strategy.max_update_norm
    number = type(longest) in (int, float) and 0 < longest < math.inf
    if not number and longest not in ("auto", "off"):
        rule = 'must be a number above 0 (an L2 norm), auto, or off (in YAML "off", with its quotes)'
        yield Problem("strategy.max_update_norm", longest, rule, "Use strategy.max_update_norm=auto")
    if number and protects_clients(config):
        rule = f"privacy={config.privacy.unit} clips every update to privacy.client.clip_norm, which sets its noise"
        yield Problem("strategy.max_update_norm", longest, rule, "Use privacy.client.clip_norm")
    if is_robust(config):
        yield from _aggregate(config)


def _weights(config: Config) -> Iterator[Problem]:
    weights, names = config.strategy.weights, identities(config)
    if not isinstance(weights, dict):
        rule = "must be a mapping from clients to numbers of examples"
        yield Problem("strategy.weights", weights, rule, "Try strategy.weights={0: 100, 1: 250}")
        return
    for name, value in weights.items():
        key = f"strategy.weights.{name}"
        if name not in names:
            hint = f"The experiment's names are {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
            yield Problem(key, value, "no client of the experiment", hint)
        elif type(value) not in (int, float) or not 1 <= value <= 2**20:
            yield Problem(key, value, "must be a number of examples in [1, 1048576]", f"Try {key}=100")
    missing = [name for name in names if name not in weights]
    if weights and missing:
        rule = f"no weight of client {', '.join(missing[:5])}{', ...' * (len(missing) > 5)}"
        yield Problem("strategy.weights", weights, rule, f"Add {missing[0]}: N to it, or leave all weights out")
    if config.runtime.name == "deployment":
        yield from unstated_weights(config)


def unstated_weights(config: Config) -> Iterator[Problem]:
    """What is wrong in a deployment, where only the clients themselves know their numbers of examples."""
    if weighs_by_examples(config) and not config.strategy.weights:
        rule = (
            "in a deployment nobody can check the number of examples that a client reports, and its weight is its "
            "share of the model"
        )
        hint = "Use strategy.weighting=equal, or state every weight: strategy.weights={NAME: N, ...}"
        yield Problem("strategy.weighting", "examples", rule, hint)


def _aggregate(config: Config) -> Iterator[Problem]:
    key, value, hint = "strategy.aggregate", config.strategy.aggregate, "Use strategy.aggregate=mean"
    if protects_clients(config):
        rule = f"privacy={config.privacy.unit} has noise for a clipped sum; one client may move a {value} further"
        yield Problem(key, value, rule, hint)
    if cohort_size(config) < _FEWEST:
        rule = f"a round has {cohort_size(config)} clients, and of fewer than {_FEWEST} none can be outvoted"
        yield Problem(key, value, rule, hint)
    if config.codec.name in _SPARSE:
        rule = f"codec.name={config.codec.name} sends few values of each update, so most of a coordinate's values are 0"
        yield Problem(key, value, rule, "Use strategy.aggregate=mean or codec=int8")
