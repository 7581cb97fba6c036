"""Which overrides may come over a network: choices that the bundle holds, and plain values. Knows text; not Flower.

The machines of other owners compose the overrides of a run. An override with code, a search path or an interpolation
would let the sender run code or read values there (an error's text even shows `${oc.env:HOME}`). So these are refused.
Arguments of the user's own callables travel as a file of the bundle.
"""

import json
import re
from collections.abc import Sequence

from fedq.config.compose import known_keys, path_keys
from fedq.config.problem import ConfigError, Problem
from fedq.config.schema import GROUPS, OPEN

OVERRIDES = "overrides"  # the only key of a Flower run config that fedq reads
# Decided on each machine: the connection to the server. Paths are too: `path_keys`.
_LOCAL = "runtime."
_SERVER = ("runtime.wait", "runtime.timeout", "runtime.min_available")  # options of the server app
_LONGEST = 10_000


def refused(override: str) -> str | None:
    """Why this override must not cross a network; None if it may."""
    if not isinstance(override, str) or len(override) > _LONGEST:
        return f"must be a text of at most {_LONGEST:,} characters"
    if re.search(r"(?<!\w)_target_(?!\w)", override):  # as a part of a key, in any quotes or nesting
        return "'_target_' names code to run; only choices among what the bundle holds may cross a network"
    for sign, why in (
        ("${", "is an interpolation: it reads the environment of the machine that composes it"),
        ("hydra.", "changes where configs are read from"),
        ("hydra/", "changes how configs are read"),
    ):
        if sign in override:
            return f"{sign!r} {why}; only choices among what the bundle holds may cross a network"
    if override.startswith(("+", "~")):
        return "adds or deletes a key; only choices among what the bundle holds may cross a network"
    key, sign, value = override.partition("=")
    if not sign or not re.fullmatch(r"[a-z][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*", key):
        return "is not KEY=VALUE"
    if key.startswith(("model.", "data.")):  # an argument of a loader may be a path
        return "is an argument of the app's own code, which travels in the bundle"
    if key in GROUPS:
        # A choice with a path in its name would read a file outside the bundle.
        return None if re.fullmatch(r'"?[A-Za-z0-9_][A-Za-z0-9_-]*"?', value) else "names no choice of a group"
    if key in path_keys():
        return "holds a path: which files are opened is decided on each machine, not over a network"
    if key.startswith(_LOCAL) and key not in _SERVER:
        return "is decided on each machine, not over a network"
    if key not in known_keys() and not any(key.startswith(f"{prefix}.") for prefix in OPEN):
        return "is no key of an experiment"
    return None


def check(overrides: Sequence[str]) -> list[str]:
    """The overrides; `ConfigError` with every override that must not cross a network."""
    found = [
        Problem(f"run-config {OVERRIDES}", override, rule, "Put it into conf/ of the app, which travels in the bundle")
        for override in overrides
        if (rule := refused(override)) is not None
    ]
    if found:
        raise ConfigError(found)
    return list(overrides)


def read(text: object) -> list[str]:
    """Checked overrides from a Flower run config, a JSON list of texts. Raises ConfigError."""
    try:
        overrides = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        overrides = None
    if not isinstance(overrides, list):
        fix = "Use a TOML file with overrides = '[\"rounds=3\"]'"
        raise ConfigError([Problem(f"run-config {OVERRIDES}", str(text)[:200], "must be a JSON list of texts", fix)])
    return check(overrides)


def write(overrides: Sequence[str]) -> str:
    """The text of the overrides for `read`. Raises ConfigError."""
    return json.dumps(check(overrides))
