"""A user's callable and its arguments. The only module that imports by dotted path."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedq.config import Config, Problem, rules
from fedq.experiment.foreign import Allowed, may_call, may_name

Factory = Callable[..., Any]
_PATHS = "_paths_"  # in a choice of an open group: the arguments of its callable that hold paths


def arguments(config: Config, group: str, given: Any) -> dict[str, Any]:
    """Arguments of an open group's callable; for an object of the caller, only those of the command line."""
    options = {k: v for k, v in getattr(config, group).items() if k not in ("_target_", _PATHS, "nominal_examples")}
    if given is not None:
        options = {k: v for k, v in options.items() if rules.set_by_user(config, f"{group}.{k}")}
    return options


def imported(path: Any, group: str, found: list[Problem], allow: Allowed | None = None) -> Factory | None:
    """The callable at a dotted path; a problem if it cannot be imported or is not allowed.

    `allow`: for a config of another party, the modules whose code may run; None: the config is the user's own.
    """
    if not isinstance(path, str) or "." not in path:
        return None  # the rules report it, or the caller passed an object
    module, _, name = path.rpartition(".")
    if allow is not None and not may_name(path, group, allow):
        rule = "names code outside fedq's own models and data, and this command reads configs of other parties"
        found.append(Problem(f"{group}._target_", path, rule, f"If you trust that module, add --allow {module}"))
        return None
    try:
        target = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        rule = f"cannot be imported: {error_text(error)}"
        found.append(
            Problem(f"{group}._target_", path, rule, "It must be importable from the folder where fedq is started")
        )
        return None
    if not callable(target):
        found.append(Problem(f"{group}._target_", path, "is not callable", "Name a class or a function"))
        return None
    if allow is not None and not may_call(target, path, group, allow):
        home = str(getattr(target, "__module__", None) or type(target).__module__)
        rule = f"was defined in {home}, which is not allowed"
        found.append(Problem(f"{group}._target_", path, rule, f"If you trust that module, add --allow {home}"))
        return None
    return target  # type: ignore[no-any-return]


def bound(target: Any, options: Mapping[str, Any], group: str, found: list[Problem]) -> dict[str, Any]:
    """The options that the callable takes; each other option becomes a problem with the nearest name."""
    accepted = inspect.signature(target).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        return dict(options)
    for name in set(options) - set(accepted):
        near = difflib.get_close_matches(name, accepted, n=1)
        fix = f"Did you mean {group}.{near[0]}?" if near else f"It takes: {', '.join(accepted) or 'nothing'}"
        found.append(
            Problem(
                f"{group}.{name}",
                options[name],
                f"{getattr(target, '__qualname__', target)} takes no such argument",
                fix,
            )
        )
    return {k: v for k, v in options.items() if k in accepted}


def check_paths(config: Config, group: str, target: Any, found: list[Problem], *, allowed: Sequence[str] = ()) -> bool:
    """Whether no argument of a config from the network holds a path; adds a problem for each that does.

    An argument holds a path if its annotation contains `Path`, or if the choice's YAML lists it as `_paths_`.
    `allowed`: names whose value this machine has set.
    """
    options = getattr(config, group)
    held = {str(name) for name in options.get(_PATHS) or ()}
    if callable(target):
        held |= {name for name, p in inspect.signature(target).parameters.items() if "Path" in str(p.annotation)}
    given = [name for name in sorted(held - set(allowed)) if options.get(name) is not None]
    for name in given:
        rule = "holds a path, and one that came over a network is not opened"
        hint = "Put what it names into the app's own files, and let the app's code read it there"
        found.append(Problem(f"{group}.{name}", options[name], rule, hint))
    return not given


def problem(error: BaseException, *, key: str, value: Any, fix: str) -> Problem:
    """The error of a package or of a user's code as a problem of `key`, or of the key that its text names."""
    text = (str(error).strip() or type(error).__name__).rstrip(".")
    named = re.match(r"([a-z_]+(?:\.[a-z_]+)+)=(.*?): (.*)", text, re.DOTALL)
    return Problem(named[1], named[2], named[3], fix) if named else Problem(key, value, text, fix)


def error_text(error: BaseException) -> str:
    """The text of an error, without a full stop, for the middle of a sentence."""
    return (str(error).strip() or type(error).__name__).rstrip(".")


def rule_and_fix(error: BaseException) -> tuple[str, str]:
    """Of a text `name=value: rule; fix`."""
    rule, _, fix = str(error).partition(": ")[2].partition("; ")
    return rule, fix[:1].upper() + fix[1:] if fix.startswith(("try ", "use ")) else fix
