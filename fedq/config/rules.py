"""All rules about a config that need no data. Knows the schema; not Hydra, torch or Flower."""

import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from fedq.codec import CODECS
from fedq.codec.options import ROUNDINGS
from fedq.config import client_level, deltas, hardware, robustness
from fedq.config.augmentation import idle_augmentation
from fedq.config.budgets import budget_problems, evaluation_problems
from fedq.config.client_level import protects_examples
from fedq.config.example_level import example_problems
from fedq.config.problem import Problem
from fedq.config.pruning import idle_pruning, pruning_problems
from fedq.config.public import LEAST_EPSILON, MOST_EPSILON, cohort_size, identities
from fedq.config.quantization import idle_quantization
from fedq.config.schema import Config

OBJECT = "object:"  # prefix of the name of a model or data that is an object of the calling process

# Values of the closed options. Other packages own the classes of these names; a test compares them.
CHOICES: dict[str, tuple[str | int, ...]] = {
    "evaluate": ("server", "dp", "off"),
    "partition.name": ("iid", "dirichlet", "by_column"),
    "train.schedule": ("constant", "linear", "cosine"),
    "train.loss": ("cross_entropy", "binary_cross_entropy", "mse", "l1", "huber"),
    "train.metric": ("accuracy", "multilabel_accuracy", "r2", "mse", "mae"),
    "train.device": ("auto", "cpu", "cuda", "mps"),
    "train.autocast": ("off", "bf16"),
    "quant.name": ("off", "int8", "int4", "ternary"),
    "quant.weight_bits": (8, 4, 2),
    "quant.granularity": ("channel", "tensor"),
    "quant.weight_rounding": ("nearest", "stochastic"),
    "quant.activation_bits": (8, 4),
    "quant.activations": ("fixed", "learned", "observed", "dynamic", "off"),
    "privacy.unit": client_level.UNITS,
    "privacy.accountant": ("prv", "rdp"),
    "privacy.noise": ("discrete", "gaussian", "seeded"),
    "codec.name": tuple(CODECS),
    "codec.rounding": ROUNDINGS,
    "downlink.name": tuple(CODECS),
    "downlink.rounding": ROUNDINGS,
    "downlink.kind": ("weights", "delta"),
    "strategy.name": ("fedavg",),
    "strategy.keep": ("last", "best"),
    "runtime.name": ("local", "ray", "deployment"),
    **client_level.CHOICES,
    **robustness.CHOICES,
}
# Codec -> its options.
CODEC_OPTIONS = {name: tuple(inspect.signature(codec).parameters) for name, codec in CODECS.items()}
# Below this fraction, int8 weights take fewer bytes than changes plus float32 weights for clients that missed some.
LEAST_DELTA_FRACTION = 0.3
# key -> (least, largest, whether the bounds themselves are allowed)
BOUNDS: dict[str, tuple[float, float, bool, bool]] = {
    "rounds": (1, 1_000_000, True, True),
    "clients": (1, 1_000_000, True, True),
    "fraction": (0, 1, False, True),
    "seed": (0, 2**63 - 1, True, True),
    "partition.alpha": (0, math.inf, False, False),
    "partition.min_size": (1, math.inf, True, False),
    "train.epochs": (0, 10_000, False, True),
    "train.steps": (1, 1_000_000, True, True),
    "train.batch_size": (1, 1_000_000, True, True),
    "train.lr": (0, math.inf, False, False),
    "train.clip_grad": (0, math.inf, False, False),
    "train.holdout": (0, 1, False, False),
    "quant.weight_range": (1, 127, True, True),
    "quant.activation_range": (0, math.inf, False, False),
    "quant.input_range": (0, math.inf, False, False),
    "quant.sparsity": (0, 1, False, False),
    "quant.sparsity_begin": (0, 1, True, True),
    "quant.sparsity_end": (0, 1, True, True),
    "privacy.target_epsilon": (LEAST_EPSILON, MOST_EPSILON, True, True),
    "privacy.target_delta": deltas.BOUNDS,
    "privacy.noise_multiplier": (0.01, 1e5, True, True),
    "privacy.evaluation_epsilon": (1e-3, 10, True, True),
    "privacy.clip_norm": (1e-6, 1e6, True, True),
    "privacy.sample_rate": (1e-6, 1, True, True),
    "privacy.nominal_examples": (1, math.inf, True, False),
    "privacy.augmentations": (1, 256, True, True),
    "codec.block": (16, 65536, True, True),
    "codec.fraction": (1e-6, 1, True, True),
    "downlink.block": (16, 65536, True, True),
    "downlink.fraction": (1e-6, 1, True, True),
    "strategy.server_lr": (0, math.inf, False, False),
    "strategy.min_clients": (1, math.inf, True, False),
    "strategy.ema": (0, 1, False, False),
    "strategy.evaluate_every": (1, math.inf, True, False),
    "runtime.workers": (1, 256, True, True),
    "runtime.wait": (0, 7 * 86400, True, True),
    "runtime.timeout": (0, 7 * 86400, False, True),
    "runtime.min_available": (1, 1_000_000, True, True),
    **client_level.BOUNDS,
    **robustness.BOUNDS,
}

# Options of later versions: with their default they are left out of the identity, so that old identities stay.
_LATER = (
    (None, "names"),
    (None, "algorithm"),
    ("train", "autocast"),
    ("strategy", "ema"),
    *(("privacy", key) for key in ("augmentations", "augment")),
    *(("quant", key) for key in ("granularity", "weight_rounding", "calibration")),
    (None, "evaluate"),
    *(("privacy", key) for key in ("budgets", "evaluation_epsilon")),
    *(("quant", key) for key in ("sparsity", "sparsity_begin", "sparsity_end")),
    *(("privacy", key) for key in client_level.KEYS),
    *robustness.LATER,
)


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
    """The part of the config that decides the trained arrays; it is the same on every runtime."""
    options = asdict(config)
    for key in ("runtime", "name", "overrides", "overlay"):
        del options[key]
    del options["privacy"]["ledger"]
    for group, key in _LATER:  # with its default, the experiment is the same as before the option existed
        at = options if group is None else options[group]
        if at[key] == value_of(Config(), key if group is None else f"{group}.{key}"):
            del at[key]
    options["strategy"].setdefault("max_weight", 1e6)  # stands where none is set
    if options["quant"]["weight_range"] is None:
        options["quant"]["weight_range"] = 63
    if config.privacy.unit != "off":  # no effect under DP
        options["strategy"]["weighting"] = "examples"
    if config.privacy.unit == "off":  # no effect without DP; gaussian was the first default
        options["privacy"]["noise"] = "gaussian"
    else:  # no effect: under DP all clients have the same weight
        options["strategy"]["weighting"] = "examples"
    for key in ("device", "compile", "data_parallel"):  # they depend on the machine, like `runtime`
        del options["train"][key]
    return options


def config_hash(config: Config) -> str:
    """16 hex digits that identify the experiment."""
    text = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def set_by_user(config: Config, key: str) -> bool:
    """Whether the user set the key on the command line; only then is an option without effect an error."""
    return any(o.lstrip("+").startswith((f"{key}=", f"{key}.")) for o in config.overrides)


def _single(config: Config) -> Iterator[Problem]:
    for key, choices in CHOICES.items():
        value = value_of(config, key)
        if value not in choices and not (value is None and value_of(Config(), key) is None):
            yield Problem(key, value, f"must be one of {', '.join(map(str, choices))}", f"Use {key}={choices[0]}")
    published = config.data.get("nominal_examples")
    if published is not None and (type(published) is not int or published < 1):
        rule = "must be a whole number of at least 1: the public size of the training part"
        yield Problem("data.nominal_examples", published, rule, "Try data.nominal_examples=1000")
    for key, (low, high, with_low, with_high) in BOUNDS.items():
        value = value_of(config, key)
        if value is None:
            continue
        inside = (low <= value if with_low else low < value) and (value <= high if with_high else value < high)
        if not inside:
            yield Problem(key, value, f"must be in {_interval(low, high, with_low, with_high)}", _try(config, key))


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
    yield from _idle(config)
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


def _idle(config: Config) -> Iterator[Problem]:
    """Options that the user set and that have no effect."""
    c = config
    engine = f"runtime={c.runtime.name} has no such option"
    table: list[tuple[Sequence[str], bool, str, str]] = [
        (("runtime.workers",), c.runtime.name == "local", engine, "Use runtime=local"),
        (("runtime.address",), c.runtime.name == "ray", engine, "Use runtime=ray"),
        (
            ("runtime.connection", "runtime.insecure"),
            c.runtime.name == "deployment",
            engine,
            "Use runtime=deployment",
        ),
        (
            ("runtime.wait", "runtime.min_available", "runtime.timeout"),
            c.runtime.name != "local",
            engine,
            "Use runtime=ray or runtime=deployment",
        ),
        *client_level.idle_privacy(c),
        idle_augmentation(config),
        (_options("quant", "name"), c.quant.name != "off", "quant is off, so it would do nothing", "Add quant=int8"),
        (("privacy.evaluation_epsilon",), c.evaluate == "dp", f"evaluate={c.evaluate}", "Use evaluate=dp"),
        idle_pruning(c),
        *idle_quantization(c),
        (
            ("partition.alpha", "partition.min_size"),
            c.partition.name == "dirichlet",
            f"partition={c.partition.name} has no such option",
            "Use partition=dirichlet",
        ),
        *_codec_options("codec", c.codec.name),
        *_codec_options("downlink", c.downlink.name),
        (
            ("train.batch_size",),
            not protects_examples(c) or c.privacy.sample_rate is None,
            f"under DP privacy.sample_rate={c.privacy.sample_rate} decides the size of a batch",
            "Use privacy.sample_rate=RATE, or set it to null",
        ),
        *robustness.idle_robustness(c),
    ]
    for keys, applies, rule, fix in table:
        for key in keys:
            if not applies and set_by_user(config, key):
                yield Problem(key, value_of(config, key), rule, fix)


def _codec_options(group: str, name: str | None) -> Iterator[tuple[Sequence[str], bool, str, str]]:
    """Options that the codec of one direction does not have; without a name it has none."""
    for option in sorted({option for options in CODEC_OPTIONS.values() for option in options}):
        rule = "downlink.name is null" if name is None else f"{group}.name={name} has no such option"
        if group == "downlink" and option == "feedback":
            rule = "error feedback is always on for changes, and has no use for weights"
            yield (("downlink.feedback",), False, rule, "Leave it out; downlink.kind=delta has it")
            continue
        owners = [codec for codec, options in CODEC_OPTIONS.items() if option in options]
        yield (
            (f"{group}.{option}",),
            option in CODEC_OPTIONS.get(name or "", ()),
            rule,
            f"Use {group}.name={'int8' if 'int8' in owners else owners[0]}",
        )


def _options(group: str, switch: str) -> list[str]:
    """All keys of a group except the one that switches it."""
    return [f"{group}.{f.name}" for f in fields(getattr(Config(), group)) if f.name != switch]


def _interval(low: float, high: float, with_low: bool, with_high: bool) -> str:
    return f"{'[' if with_low else '('}{low:g}, {high:g}{']' if with_high else ')'}"


def _try(config: Config, key: str) -> str:
    default = value_of(Config(), key)
    low, high, with_low, _ = BOUNDS[key]
    usual = {"privacy.target_epsilon": 8, "train.epochs": 1, "strategy.ema": 0.9, "privacy.sample_rate": 0.1}
    value = default if default is not None else usual.get(key, low if with_low else high)
    return f"Try {key}={value:g}" if isinstance(value, (int, float)) and math.isfinite(value) else f"Set another {key}"
