"""Checks of a config that another party wrote: it may name fedq's factories, allowed modules and ordinary files.
Knows names and paths; imports none of them and opens none.

A user who audits, exports or inspects a run has often not chosen its config. There a `_target_` is code to run, and a
path is a file to open. So a target must be one of `FACTORIES`, or be both found and defined in a module that the user
named with `--allow`. In the current folder only modules with these names are found: a `torch.py` or a `hydra_plugins/`
beside the config is never imported.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Final

from fedq.config import Config, ConfigError, Problem

# Factories that are safe to call with arguments of a config. Other callables below `fedq` are not.
FACTORIES: Final[Mapping[str, frozenset[str]]] = {
    "model": frozenset(
        f"fedq.models.{name}"
        for name in ("cnn", "cnn_wide", "linear", "mlp", "resnet8_gn", "scatter_cnn", "scatter_linear", "transformer")
    ),
    "data": frozenset(f"fedq.data.{name}" for name in ("csv", "digits", "fashion_mnist")),
}
LARGEST_FILE: Final = 2**32  # largest size of a file that such a config may name, in bytes

Allowed = Sequence[str]  # modules and packages; everything below one is allowed too


def may_name(target: str, group: str, allowed: Allowed) -> bool:
    """Whether a target may be imported."""
    return target in FACTORIES[group] or _below(target.rpartition(".")[0], allowed)


def may_call(target: Any, named: str, group: str, allowed: Allowed) -> bool:
    """Whether the imported object may be called: an allowed module may hold functions of others (`mine.system`)."""
    return named in FACTORIES[group] or _below(str(getattr(target, "__module__", "")), allowed)


def _below(module: str, allowed: Allowed) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def checked_modules(names: Sequence[str]) -> tuple[str, ...]:
    """The names, as a tuple; ValueError if one is not the name of a module."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            raise ValueError(f"--allow {name}: no name of a module. Give a dotted name, such as mine or mine.data")
    return tuple(names)


class FromFolder(MetaPathFinder):
    """Finds allowed modules, and nothing else, in one folder. It is the last finder, so it hides no other module."""

    def __init__(self, folder: Path, allowed: Allowed) -> None:
        self._folder, self._first = str(folder), {name.partition(".")[0] for name in allowed}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As Python's own finder; the parts of a package are found by the package."""
        return PathFinder.find_spec(fullname, [self._folder]) if path is None and fullname in self._first else None


def named_files(config: Config) -> dict[str, str]:
    """Key -> path of each file or folder that a config names and that exists."""
    return {key: text for key, text in _texts(config) if _exists(text)}


def check_files(config: Config) -> None:
    """ConfigError if a named file is not an ordinary one: reading a named pipe blocks, and a device has no end."""
    found = []
    for key, text in named_files(config).items():
        path = Path(text).expanduser()
        if not (path.is_file() or path.is_dir()):
            rule = "is neither a file nor a folder (a pipe, a socket or a device), and the config is not your own"
            found.append(Problem(key, text, rule, "Name an ordinary file"))
        elif path.is_file() and path.stat().st_size > LARGEST_FILE:
            rule = f"is larger than {LARGEST_FILE:,} bytes, and the config is not your own"
            found.append(Problem(key, text, rule, "Name a smaller file"))
    if found:
        raise ConfigError(found)


def _texts(config: Config) -> Iterator[tuple[str, str]]:
    """(key, text) of all that may be opened: texts among the arguments of data and model, and quant.calibration."""
    if config.quant.calibration is not None:
        yield "quant.calibration", config.quant.calibration
    for group in ("data", "model"):
        arguments = {key: value for key, value in getattr(config, group).items() if key != "_target_"}
        yield from _leaves(group, arguments)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _leaves(key, inner)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, or no such user's home
        return False
