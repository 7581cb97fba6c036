"""The algorithm that a config names, with its options. Reports wrong combinations before any work starts."""

import inspect
from difflib import get_close_matches

from fedq.algorithms import ALGORITHMS, UPDATE, Algorithm
from fedq.config import Config, Problem
from fedq.config.client_level import protects_clients


def algorithm_of(config: Config, found: list[Problem]) -> Algorithm | None:
    """The algorithm; None, with problems added to `found`, if the name or an option is wrong."""
    options = dict(config.algorithm)
    name = options.pop("name", None)
    if name not in ALGORITHMS:
        near = get_close_matches(str(name), ALGORITHMS, n=1)
        fix = f"Use algorithm={near[0] if near else 'fedavg'}"
        found.append(Problem("algorithm.name", name, f"must be one of {', '.join(ALGORITHMS)}", fix))
        return None
    kind = ALGORITHMS[name]
    accepted = inspect.signature(kind).parameters
    for option in options:
        if option not in accepted:
            has = f"it has {', '.join(accepted)}" if accepted else "it has none"
            rule = f"algorithm={name} has no such option; {has}"
            found.append(Problem(f"algorithm.{option}", options[option], rule, "Leave it out"))
    if set(options) - set(accepted):
        return None
    try:
        algorithm = kind(**options)
    except (TypeError, ValueError) as error:
        rule, _, fix = str(error).partition("; ")
        key = f"algorithm.{rule.partition('=')[0]}" if "=" in rule else "algorithm"
        rule = rule.partition(": ")[2] or rule
        found.append(Problem(key, options.get(key.rpartition(".")[2]), rule, fix[:1].upper() + fix[1:]))
        return None
    _check_together(config, name, algorithm, found)
    return algorithm


def _check_together(config: Config, name: str, algorithm: Algorithm, found: list[Problem]) -> None:
    train = config.train
    if algorithm.plain_sgd and (train.optimizer != "SGD" or set(train.optimizer_options) - {"weight_decay"}):
        rule = f"algorithm={name} reads a gradient from the distance that a client moved, which needs plain SGD"
        fix = "Use train=sgd without momentum, or algorithm=fedavg"
        found.append(Problem("train.optimizer", train.optimizer, rule, fix))
    beside = [packet.name for packet in algorithm.uplink if packet.name != UPDATE]
    if beside and protects_clients(config):
        rule = f"the server's noise covers the update alone, and algorithm={name} also sends {', '.join(beside)}"
        found.append(Problem("privacy.unit", config.privacy.unit, rule, "Use algorithm=fedavg or privacy=example"))
