"""The algorithm that a config names, with its options. Reports wrong combinations before any work starts."""

from difflib import get_close_matches

from fedq.algorithms import ALGORITHMS, UPDATE, Algorithm
from fedq.config import Config, Problem
from fedq.config.client_level import protects_clients
from fedq.experiment.binding import bound, error_text, rule_and_fix


def algorithm_of(config: Config, found: list[Problem]) -> Algorithm | None:
    """The algorithm; None, with problems added to `found`, if the name or an option is wrong."""
    options = dict(config.algorithm)
    name = options.pop("name", None)
    if name not in ALGORITHMS:
        near = get_close_matches(str(name), ALGORITHMS, n=1)
        fix = f"Use algorithm={near[0] if near else 'fedavg'}"
        found.append(Problem("algorithm.name", name, f"must be one of {', '.join(ALGORITHMS)}", fix))
        return None
    kind, known = ALGORITHMS[name], len(found)
    options = bound(kind, options, "algorithm", found)
    if len(found) > known:
        return None
    try:
        algorithm = kind(**options)
    except (TypeError, ValueError) as error:
        option = str(error).partition("=")[0]
        key, (rule, fix) = f"algorithm.{option}" if option in options else "algorithm", rule_and_fix(error)
        found.append(Problem(key, options.get(option, name), rule or error_text(error), fix))
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
