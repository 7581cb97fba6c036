"""Prepare what is sent for a run: the app directory as a bundle, and the overrides that may be sent. Starts nothing.

Values that a user sets on the command line for open keys (a model, a loader, their arguments) are written into the
bundle's own `conf/` as a choice named `staged`: they are sent as a file that every site can read, never as an override.
"""

import importlib.util
import io
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedq import __version__
from fedq.app.bundle import COMPONENTS, is_app
from fedq.app.host import EVENTS, INSECURE
from fedq.config import Config, ConfigError, Problem, compose, network
from fedq.config.compose import STAGED
from fedq.experiment.binding import check_paths, imported
from fedq.flower import private as flower

_OPEN_GROUPS = ("model", "data")
# Settings for how the apps are run and reached from here; the apps do not need them.
_HERE = ("runtime.connection", "runtime.insecure", "runtime.workers", "runtime.address")


@dataclass(frozen=True)
class Staged:
    """A bundle's folder, the overrides that are sent with it, and its size as it is sent (bytes)."""

    folder: Path
    overrides: list[str]
    size: int


def stage(overrides: Sequence[str], config: Config, *, app: Path | None, into: Path) -> Staged:
    """Fill `into` with the bundle of the app directory `app` (None: only fedq's own configs).

    Raises `ConfigError` for every override that may not be sent, and for a bundle that Flower would refuse.
    """
    sent, open_groups = _split_overrides(overrides)
    network.check(sent)
    overlay = None if config.overlay is None else Path(config.overlay)
    folder = into / "app"
    folder.mkdir(parents=True)
    if app is not None:
        _unpack(_bundle(app), folder)
    project = _project(folder)
    if overlay is not None and (app is None or overlay.resolve() != (app / "conf").resolve()):
        _copy_choices(overlay, folder / "conf")
    _check_code(config, folder)
    _check_paths(config, open_groups)
    for group in open_groups:
        _write_choice(folder / "conf" / group / f"{STAGED}.yaml", getattr(config, group))
    (folder / "pyproject.toml").write_bytes(_toml(project))
    staged = Staged(folder, [*sent, *(f"{group}={STAGED}" for group in open_groups)], len(_bundle(folder)))
    _check_same(config, staged)
    return staged


def say_insecure(staged: Staged) -> None:
    """Make the server's result say that the run was submitted over an insecure connection."""
    path = staged.folder / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))
    project["tool"]["flwr"]["app"]["config"][INSECURE] = True
    path.write_bytes(_toml(project))


def _split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides that are sent as overrides, and the groups with a setting that is sent as a file."""
    keys = [o.lstrip("+").partition("=")[0] for o in overrides]
    groups = [g for g in _OPEN_GROUPS if any(k.startswith(f"{g}.") for k in keys)]
    inside = tuple(f"{g}." for g in groups)
    sent = [
        override
        for override, key in zip(overrides, keys, strict=True)
        if not key.startswith(inside or ("\0",)) and key not in groups and key not in _HERE
    ]
    return sent, groups


def _project(folder: Path) -> dict[str, Any]:
    """The bundle's pyproject.toml: the app's own, or one for an experiment that needs only fedq's code."""
    path = folder / "pyproject.toml"
    if path.exists():
        project = tomllib.loads(path.read_text(encoding="utf-8"))
    else:
        project = {"project": {"name": "fedq-experiment", "version": __version__}}
        project["tool"] = {"flwr": {"app": {"publisher": "fedq", "components": dict(COMPONENTS)}}}
    app = project["tool"]["flwr"]["app"]
    app.setdefault("config", {}).setdefault(network.OVERRIDES, "[]")
    app["config"][EVENTS] = True  # the submitter follows the run
    for key in ("fab-include", "fab-exclude"):  # the folder holds only files that passed these patterns
        app.pop(key, None)
    return project


def _bundle(folder: Path) -> bytes:
    try:
        return flower.bundle(folder)
    except ValueError as error:
        rule = f"Flower cannot bundle it: {' '.join(str(error).split())}"
        fix = "Fix its pyproject.toml; `fedq new DIR` makes an app that works"
        raise ConfigError([Problem("app", folder.name, rule.rstrip("."), fix)]) from None


def _unpack(bundle: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        archive.extractall(folder)
    manifest = folder / ".info"
    if manifest.is_dir():  # Flower creates it again
        for file in manifest.iterdir():
            file.unlink()
        manifest.rmdir()


def _copy_choices(source: Path, target: Path) -> None:
    for file in sorted(source.rglob("*.yaml")):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())


def _write_choice(path: Path, node: dict[str, Any]) -> None:
    from omegaconf import OmegaConf

    path.parent.mkdir(parents=True, exist_ok=True)
    text = OmegaConf.to_yaml(OmegaConf.create(node))
    path.write_text(f"# What the command line of this run set.\n{text}", encoding="utf-8")


def _check_code(config: Config, folder: Path) -> None:
    """A problem for a model or loader in this folder that the bundle does not contain."""
    found = []
    for group in _OPEN_GROUPS:
        target = str(getattr(config, group).get("_target_"))
        root = target.partition(".")[0]
        if (folder / root).is_dir() or (folder / f"{root}.py").is_file():
            continue
        spec = importlib.util.find_spec(root) if root.isidentifier() else None
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        installed = origin is None or "site-packages" in origin.parts  # maybe in a .venv in this folder
        if origin is not None and not installed and origin.is_relative_to(Path.cwd().resolve()) and root != "fedq":
            rule = f"{origin.name} is in this folder but not in the bundle, so no client could import it"
            fix = "`fedq new DIR` makes an app directory; put the module there, and add it to its fab-include"
            found.append(Problem(f"{group}._target_", target, rule, fix))
    if found:
        raise ConfigError(found)


def _check_paths(config: Config, groups: Sequence[str]) -> None:
    """A problem for a path among the arguments of a model or loader: no client can open it."""
    found: list[Problem] = []
    for group in groups:
        unused: list[Problem] = []  # the build reports what cannot be imported here
        target = imported(getattr(config, group).get("_target_"), group, unused)
        check_paths(config, group, target, found, allowed=("path",) if group == "data" else ())
    if found:
        raise ConfigError(found)


def _check_same(config: Config, staged: Staged) -> None:
    """Check that the other machines will compose the same experiment as this machine."""
    from fedq.config import identity

    conf = staged.folder / "conf"
    there = compose(staged.overrides, overlay=conf if conf.is_dir() else None)
    if identity(there) != identity(config):
        changed = sorted(k for k, v in identity(config).items() if identity(there)[k] != v)
        rule = "would be different on the other machines"
        raise ConfigError([Problem(", ".join(changed), "", rule, "Please report this bug with the command")])


def _toml(values: dict[str, Any]) -> bytes:
    import tomli_w

    return tomli_w.dumps(values).encode()


def run_config(overrides: Sequence[str]) -> bytes:
    """The file for `flwr run --run-config`: overrides as one JSON list (on its command line a quote cuts the text)."""
    return _toml({network.OVERRIDES: network.write(overrides)})


def app_here() -> Path | None:
    """The app directory in which fedq was started, or None."""
    return Path.cwd() if is_app(Path.cwd()) else None
