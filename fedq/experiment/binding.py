"""A user's callable and the arguments it is given: the one place that imports by dotted path."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedq.config import Config, Problem, rules
from fedq.experiment.foreign import Allowed, may_call, may_name

Factory = Callable[..., Any]
_PATHS = "_paths_"  # in a choice of an open group: which arguments of its callable hold paths


def arguments(config: Config, group: str, given: Any) -> dict[str, Any]:
    """What the callable of an open group is called with; for an object of the caller, what the command line says."""
    options = {k: v for k, v in getattr(config, group).items() if k not in ("_target_", _PATHS, "nominal_examples")}
    if given is not None:
        options = {k: v for k, v in options.items() if rules.set_by_user(config, f"{group}.{k}")}
    return options


def imported(path: Any, group: str, found: list[Problem], allow: Allowed | None = None) -> Factory | None:
    """The callable behind a dotted path; what cannot be imported, or may not be, becomes a problem.

    `allow`: of a config that another party wrote, the modules whose code may run; None: the config is the user's own.
    """
    if not isinstance(path, str) or "." not in path:
        return None  # the rules report it, or the caller gave an object
    module, _, name = path.rpartition(".")
    if allow is not None and not may_name(path, group, allow):
        rule = "names code that is none of fedq's own models and data, and this command reads configs of other parties"
        found.append(Problem(f"{group}._target_", path, rule, f"If you trust that module, add --allow {module}"))
        return None
    try:
        target = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        rule = f"cannot be imported: {told(error)}"
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
    """The options, if the callable takes them all; each one that it lacks becomes a problem with the nearest name."""
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
    """Whether no argument holds a path, where the config came over a network; else a problem for each that does.

    Those are arguments with `Path` in their annotation, and those that the choice's own YAML lists as `_paths_`.
    `allowed`: names whose value was put there by this machine.
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
    """What a room or a user's code said, as a problem of `key`; where the text names a key itself, of that."""
    text = (str(error).strip() or type(error).__name__).rstrip(".")
    named = re.match(r"([a-z_]+(?:\.[a-z_]+)+)=(.*?): (.*)", text, re.DOTALL)
    return Problem(named[1], named[2], named[3], fix) if named else Problem(key, value, text, fix)


def told(error: BaseException) -> str:
    """The text of an error, for the middle of a sentence."""
    return (str(error).strip() or type(error).__name__).rstrip(".")


def rule_and_fix(error: BaseException) -> tuple[str, str]:
    """Of a text `name=value: rule; fix`."""
    rule, _, fix = str(error).partition(": ")[2].partition("; ")
    return rule, fix[:1].upper() + fix[1:] if fix.startswith(("try ", "use ")) else fix
