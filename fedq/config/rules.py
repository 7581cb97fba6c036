"""Rules about a config that need no data: each option by its declaration, then combinations of options.

Knows the schema; not Hydra, torch or Flower.
"""

import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from fedq.codec import CODECS
from fedq.config import client_level, hardware, robustness
from fedq.config.budgets import budget_problems, evaluation_problems
from fedq.config.client_level import protects_examples
from fedq.config.example_level import example_problems
from fedq.config.option import Declared, When, declared
from fedq.config.problem import Problem
from fedq.config.pruning import pruning_problems
from fedq.config.public import cohort_size, identities
from fedq.config.schema import Config

AUTO = "auto"  # of runtime.workers: as many as pay
OBJECT = "object:"  # prefix of the name of a model or data that is an object of the calling process

# Codec -> its options.
CODEC_OPTIONS = {name: tuple(inspect.signature(codec).parameters) for name, codec in CODECS.items()}
# Below this fraction, int8 weights take fewer bytes than changes plus float32 weights for clients that missed some.
LEAST_DELTA_FRACTION = 0.3


def problems(config: Config) -> list[Problem]:
    """All problems of the config, in the order of its keys; [] if it may run."""
    found = list(_single(config))
    try:
        for problem in _together(config):
            found.append(problem)
    except (ArithmeticError, ValueError, TypeError):
        if not found:  # a rule may fail on a value that is already reported
            raise
    return found


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


def identity(config: Config) -> dict[str, Any]:
    """The options that decide the trained arrays, nested as in YAML; the same on every runtime.

    Options without effect are left out: a clipping norm, say, while privacy is off.
    """
    found: dict[str, Any] = {}
    for key, option in declared(Config).items():
        if option.identity and _unmet(config, option) is None:
            *groups, name = key.split(".")
            node = found
            for group in groups:
                node = node.setdefault(group, {})
            node[name] = value_of(config, key)
    return found


def config_hash(config: Config) -> str:
    """16 hex digits that identify the experiment."""
    text = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def set_by_user(config: Config, key: str) -> bool:
    """Whether the user set the key on the command line; only then is an option without effect an error."""
    return any(o.lstrip("+").startswith((f"{key}=", f"{key}.")) for o in config.overrides)


def _single(config: Config) -> Iterator[Problem]:
    for key, option in declared(Config).items():
        value = value_of(config, key)
        if not option.accepts(value):
            rule = f"must be one of {', '.join(map(str, option.choices))}"
            yield Problem(key, value, rule, f"Use {key}={option.choices[0]}")
        if option.bounds is not None and value is not None and value not in option.bounds:
            yield Problem(key, value, f"must be in {option.bounds}", _try(option))
    published = config.data.get("nominal_examples")
    if published is not None and (type(published) is not int or published < 1):
        rule = "must be a whole number of at least 1: the public size of the training part"
        yield Problem("data.nominal_examples", published, rule, "Try data.nominal_examples=1000")


def _together(config: Config) -> Iterator[Problem]:
    train = config.train
    if (train.epochs is None) == (train.steps is None):
        yield Problem(
            "train.epochs",
            train.epochs,
            f"set one of train.epochs and train.steps (={train.steps}), the other null",
            "Use train.epochs=1 train.steps=null",
        )
    if config.strategy.min_clients > cohort_size(config):
        yield Problem(
            "strategy.min_clients",
            config.strategy.min_clients,
            f"a round has {cohort_size(config)} clients (fraction={config.fraction} of clients={config.clients})",
            f"Use strategy.min_clients={cohort_size(config)} or a larger fraction",
        )
    if config.downlink.kind == "delta" and config.fraction < LEAST_DELTA_FRACTION:
        rule = f"with fraction={config.fraction} most clients missed the changes before, and receive float32 weights"
        yield Problem("downlink.kind", "delta", rule, f"Use downlink.kind=weights, or fraction={LEAST_DELTA_FRACTION}")
    yield from pruning_problems(config)
    yield from evaluation_problems(config)
    yield from budget_problems(config, identities(config))
    yield from example_problems(config)
    yield from client_level.client_level_problems(config)
    yield from robustness.robustness_problems(config)
    yield from _names(config)
    yield from _runtime(config)
    yield from hardware.problems(config)
    yield from _without_effect(config)
    for group in ("model", "data"):
        target = getattr(config, group).get("_target_")
        if not isinstance(target, str) or not ("." in target or target.startswith(OBJECT)):
            yield Problem(
                f"{group}._target_", target, "must be a dotted path, package.module.name", f"Choose a {group}"
            )


def _names(config: Config) -> Iterator[Problem]:
    """What is wrong with the names of clients: they become folders, random keys and log lines."""
    for name in config.names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            rule = "a name has 1 to 64 letters, digits, dots, hyphens and underscores, the first a letter or digit"
            yield Problem("names", name, rule, "Use names such as [clinic-a,clinic-b]")
            return
    if config.names and (len(config.names) != config.clients or len(set(config.names)) != config.clients):
        rule = f"must be {config.clients} different names, one for each client"
        yield Problem("names", config.names, rule, f"Use clients={len(set(config.names))}, or name them all")


def _runtime(config: Config) -> Iterator[Problem]:
    runtime = config.runtime
    if runtime.workers != AUTO and not (type(runtime.workers) is int and 1 <= runtime.workers <= 256):
        rule = "must be auto, or a whole number in [1, 256]"
        yield Problem("runtime.workers", runtime.workers, rule, "Use runtime.workers=auto")
    if runtime.min_available is not None and runtime.min_available > config.clients:
        rule = f"there are {config.clients} clients"
        yield Problem("runtime.min_available", runtime.min_available, rule, "Use null to wait for them all")
    for key, value in runtime.client_resources.items():
        if key not in ("num_cpus", "num_gpus"):
            yield Problem(f"runtime.client_resources.{key}", value, "no such resource", "Use num_cpus or num_gpus")
        elif type(value) not in (int, float) or not 0 <= value < math.inf or (key == "num_cpus" and not value):
            rule = "must be a number above 0" if key == "num_cpus" else "must be a number, 0 or more"
            yield Problem(f"runtime.client_resources.{key}", value, rule, f"Try runtime.client_resources.{key}=1")
    if runtime.name == "deployment":
        yield from _deployment(config)


def _deployment(config: Config) -> Iterator[Problem]:
    """Options that every owner's machine would refuse, reported before anything starts."""
    if config.privacy.unit != "off" and config.privacy.noise == "seeded":
        rule = "others can compute this noise again, so it protects nobody; no client of a deployment adds it"
        yield Problem("privacy.noise", "seeded", rule, "Use privacy.noise=discrete")
    path = config.data.get("path")
    if isinstance(path, str) and path != "???" and not path.startswith(("/", "~")):
        rule = "in a deployment it is a path on the server's host, where this folder is not known"
        yield Problem("data.path", path, rule, "Give an absolute path; each client's own stands in its node config")
    if config.data.get("_target_") == "fedq.data.csv":
        if config.data.get("task", "classification") == "classification" and not config.data.get("classes"):
            rule = "each client would number the labels of its own file, and theirs may differ"
            yield Problem("data.classes", None, rule, "Name them all, in one order: data.classes=[no,yes]")
        if config.data.get("standardize", True):
            rule = "each client would scale by a mean of its own"
            yield Problem("data.standardize", True, rule, "Use data.standardize=false and scaled columns")
    if config.privacy.ledger is not None:
        rule = "in a deployment every client's ledger lies in the state-dir of its own node config"
        yield Problem("privacy.ledger", config.privacy.ledger, rule, "Use privacy.ledger=null")


def _without_effect(config: Config) -> Iterator[Problem]:
    """Options that the user set and that have no effect."""
    for key, option in declared(Config).items():
        condition = _unmet(config, option)
        if condition is not None and set_by_user(config, key):
            rule = condition.rule(value_of(config, condition.key))
            yield Problem(key, value_of(config, key), rule, condition.hint())
    rate = config.privacy.sample_rate
    if protects_examples(config) and rate is not None and set_by_user(config, "train.batch_size"):
        rule = f"under DP privacy.sample_rate={rate} decides the size of a batch"
        fix = "Use privacy.sample_rate=RATE, or set it to null"
        yield Problem("train.batch_size", config.train.batch_size, rule, fix)
    for group, name in (("codec", config.codec.name), ("downlink", config.downlink.name)):
        yield from _codec_options(config, group, name)


def _unmet(config: Config, option: Declared) -> When | None:
    """The first condition of the option that does not hold; None if the option has an effect."""
    return next((when for when in option.when if not when.holds(value_of(config, when.key))), None)


def _codec_options(config: Config, group: str, name: str | None) -> Iterator[Problem]:
    """Options that the user set and that the codec of one direction does not have; without a name it has none."""
    for option in sorted({option for options in CODEC_OPTIONS.values() for option in options}):
        key = f"{group}.{option}"
        if not set_by_user(config, key):
            continue
        if key == "downlink.error_feedback":
            rule = "error feedback is always on for changes, and has no use for weights"
            yield Problem(key, value_of(config, key), rule, "Leave it out; downlink.kind=delta has it")
        elif option not in CODEC_OPTIONS.get(name or "", ()):
            rule = "downlink.name is null" if name is None else f"{group}.name={name} has no such option"
            owners = [codec for codec, options in CODEC_OPTIONS.items() if option in options]
            fix = f"Use {group}.name={'int8' if 'int8' in owners else owners[0]}"
            yield Problem(key, value_of(config, key), rule, fix)


def _try(option: Declared) -> str:
    value = option.default if option.default is not None else option.example
    if value is None and option.bounds is not None:
        value = option.bounds.nearest_bound()
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return f"Try {option.key}={value:g}" if known else f"Set another {option.key}"
