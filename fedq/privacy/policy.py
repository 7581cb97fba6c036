"""A data owner's policy: the weakest privacy that it accepts, in a file outside the bundle, and the check of a request.
Knows the file and public numbers; not data, models or messages.

The file is TOML. Its keys are the fields of `Policy`, and no others. The keys `unit`, `max_epsilon` and `max_delta` are
required. A policy that is missing or cannot be read refuses every request.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from fedq.privacy.admission import Declined
from fedq.privacy.ledger import tip_in
from fedq.privacy.mechanisms import NOISES, strength

VERSION: Final = 1
# Weakest first. `client` hides a client from the other clients, but not from the server, which adds the noise.
UNITS: Final = ("off", "client", "example")
_STRONGEST: Final = max(NOISES, key=strength)
_LONGEST: Final = 86400 * 365  # seconds: every operating system's timer can hold this


class PolicyError(ValueError):
    """The policy file cannot be read or is not valid. The client takes part in nothing until it is fixed."""


@dataclass(frozen=True)
class Policy:
    """The limits of a data owner. Paths are absolute; digests are hex, and a prefix of 16 digits is enough."""

    unit: str  # off, client (the server adds the noise) or example (this client adds it)
    max_epsilon: float  # largest epsilon that a run may aim at; inf is written `inf`
    max_delta: float
    data_path: str = ""  # the file that may be read, or a folder above it; "": any path of the node config
    models: tuple[str, ...] = ()  # digests of models (configuration and code); empty: any
    bundles: tuple[str, ...] = ()  # digests of app directories; empty: any
    noise: str = "discrete"  # the weakest noise: gaussian (floats, whose low bits may leak) or discrete
    head: str = ""  # file of the ledger's tip; "": where the node config says, or beside the ledger
    # Limits of a run beyond privacy; None: no limit.
    max_rounds: int | None = None  # rounds in which this client trains
    max_steps: int | None = None  # optimizer steps in one round, noised or not
    max_seconds: float | None = None  # time for one message
    max_memory: int | None = None  # MB for one message, beyond the memory of the process when the message arrives
    max_failures_an_hour: int = 20  # refused or failed requests, after which all are refused for a while
    # Options of the data loader that a run may choose: option -> the allowed values.
    data: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    version: int = VERSION


@dataclass(frozen=True)
class Asked:
    """A run's request to this client: public numbers, digests, and the data path of the node's own config."""

    unit: str
    epsilon: float  # inf: no limit
    delta: float
    data_path: Path | None
    model: str
    bundle: str
    noise: str = "discrete"
    rounds: int | None = None  # rounds in which the client may be asked to train; None: unknown
    steps: int | None = None  # optimizer steps in one round; None: depends on the data
    data: Mapping[str, Any] = field(default_factory=dict)  # options of the data loader that the run chooses


def read_policy(path: Path) -> Policy:
    """The policy in the file; PolicyError names the key, the rule and the fix."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PolicyError(f"{path}: no such file; write one, or take policy= out of the node's config") from None
    except (OSError, ValueError, RecursionError) as error:  # tomllib may raise others beside its own ValueError
        raise PolicyError(f"{path}: not a policy in TOML: {error}") from error
    known = {field.name for field in fields(Policy)}
    if unknown := sorted(set(content) - known):
        raise PolicyError(f"{path}: {unknown[0]}: no such key; there are {', '.join(sorted(known))}")
    if missing := [key for key in ("unit", "max_epsilon", "max_delta") if key not in content]:
        raise PolicyError(f"{path}: {missing[0]} is missing: {_EXAMPLES[missing[0]]}")
    try:
        return _checked(content)
    except (ValueError, OverflowError) as error:
        raise PolicyError(f"{path}: {error}") from None


def require(policy: Policy, asked: Asked) -> None:
    """Raise Declined("policy") unless the request meets the policy; the text lists all faults, for the operator."""
    weak = []
    if UNITS.index(asked.unit) < UNITS.index(policy.unit):
        weak.append(f"privacy={asked.unit} where at least {policy.unit} is asked")
    if asked.unit != "off":
        # With this form of the comparison, a NaN is refused.
        if not asked.epsilon <= policy.max_epsilon:
            weak.append(f"epsilon {asked.epsilon:g} of at most {policy.max_epsilon:g}")
        if not asked.delta <= policy.max_delta:
            weak.append(f"delta {asked.delta:g} of at most {policy.max_delta:g}")
    if asked.unit == "example" and strength(asked.noise) < strength(policy.noise):
        weak.append(f"privacy.noise={asked.noise} where at least {policy.noise} is asked")
    if policy.data_path and not _inside(asked.data_path, Path(policy.data_path)):
        weak.append(f"the data at {asked.data_path}, where only {policy.data_path} may be read")
    for kind, digest, allowed in (("model", asked.model, policy.models), ("bundle", asked.bundle, policy.bundles)):
        if allowed and not any(digest.startswith(prefix) for prefix in allowed):
            weak.append(f"the {kind} {digest or 'without a digest'}, which is not among those of the policy")
    for kind, asks, most, fix in (
        ("rounds", asked.rounds, policy.max_rounds, "rounds="),
        ("steps in a round", asked.steps, policy.max_steps, "train.steps= in place of train.epochs="),
    ):
        if most is not None and (asks is None or asks > most):
            said = "an unsaid number of" if asks is None else str(asks)
            weak.append(f"{said} {kind} of at most {most}; the run must say fewer with {fix}")
    for option, value in asked.data.items():
        if value not in policy.data.get(option, ()):
            weak.append(
                f"data.{option}={value!r}, which the policy's [data] does not list; it would be {option} = [...]"
            )
    if weak:
        raise Declined("policy", "; ".join(weak))


def limits(policy: Policy | None, epsilon: float | None, delta: float | None) -> tuple[float | None, float | None]:
    """(epsilon, delta) that the owner's data may spend over all runs: the stricter of the node config and the policy.

    So the policy's limits also apply to a run without a budget of its own. None: no limit.
    """
    floor = (None, None) if policy is None else (policy.max_epsilon, policy.max_delta)
    epsilons, deltas = ([v for v in pair if v is not None] for pair in ((epsilon, floor[0]), (delta, floor[1])))
    return min(epsilons, default=None), min(deltas, default=None)


def tip_of(ledger: Path, policy: Policy | None, tips: Path | None) -> Path | None:
    """File of the ledger's tip: as the policy says, else in the folder `tips`; None: beside the ledger."""
    if policy is not None and policy.head:
        return Path(policy.head)
    return None if tips is None else tip_in(tips, ledger)


def unaccounted_units(policy: Policy | None) -> tuple[str, ...]:
    """Units of privacy that the policy accepts (None: no policy) and that the client's ledger does not record."""
    weakest = UNITS[0] if policy is None else policy.unit
    return UNITS[UNITS.index(weakest) : UNITS.index("example")]


_EXAMPLES: Final = {
    "unit": 'add unit = "example", the weakest unit of privacy that you accept (off, client, example)',
    "max_epsilon": "add max_epsilon = 3.0, the largest epsilon that a run may aim at",
    "max_delta": "add max_delta = 1e-5, well below one over the number of your examples",
}


def _checked(content: dict[str, Any]) -> Policy:
    version = content.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise ValueError(f"version={version!r}: this fedq reads version {VERSION}")
    if content["unit"] not in UNITS:
        raise ValueError(f"unit={content['unit']!r}: must be one of {', '.join(UNITS)}; {_EXAMPLES['unit']}")
    if content.get("noise", _STRONGEST) not in NOISES:
        raise ValueError(f"noise={content['noise']!r}: must be one of {', '.join(NOISES)}")
    for key, most in (("max_epsilon", math.inf), ("max_delta", 1.0)):
        value = content[key]
        if type(value) not in (int, float) or not 0 < value <= most:
            raise ValueError(f"{key}={value!r}: must be a number above 0{'' if most == math.inf else ' and at most 1'}")
    for key in ("max_rounds", "max_steps", "max_memory", "max_failures_an_hour"):
        value = content.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{key}={value!r}: must be a whole number, 1 or more; leave it out for no limit")
    seconds = content.get("max_seconds")
    if seconds is not None and (type(seconds) not in (int, float) or not 0 < seconds <= _LONGEST):
        raise ValueError(f"max_seconds={seconds!r}: must be a number above 0 and at most {_LONGEST}, such as 600")
    for key in ("data_path", "head"):
        value = content.get(key, "")
        if type(value) is not str or (value and not Path(value).is_absolute()) or "\0" in value:
            raise ValueError(f'{key}={value!r}: must be an absolute path, such as "/srv/data"')
    return Policy(
        content["unit"],
        float(content["max_epsilon"]),
        float(content["max_delta"]),
        content.get("data_path", ""),
        _digests("models", content.get("models", [])),
        _digests("bundles", content.get("bundles", [])),
        content.get("noise", _STRONGEST),
        content.get("head", ""),
        content.get("max_rounds"),
        content.get("max_steps"),
        None if seconds is None else float(seconds),
        content.get("max_memory"),
        content.get("max_failures_an_hour", Policy.max_failures_an_hour),
        _choices(content.get("data", {})),
    )


def _choices(table: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(table, dict):
        raise ValueError(f'data={table!r}: must be a table, [data], of lists, such as target = ["outcome"]')
    for option, values in table.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"data.{option}={values!r}: must be a list of the values that a run may choose")
    return {option: tuple(values) for option, values in table.items()}


def _digests(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
        raise ValueError(f'{key}={value!r}: must be a list of digests, such as ["0123456789abcdef"]')
    for digest in value:
        # Somebody could make other code whose digest begins with a short prefix.
        if len(digest) < 16 or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"{key}: {digest!r} is no digest: 16 to 64 digits of 0-9a-f; fedq client digest shows one")
    return tuple(value)


def _inside(path: Path | None, allowed: Path) -> bool:
    """Whether the path lies in the allowed folder once links are followed."""
    if path is None:
        return False
    there, here = path.resolve(), allowed.resolve()
    return there == here or here in there.parents
