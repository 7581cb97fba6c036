"""Composes overrides into one typed `Config`, or reports every mistake at once. Knows Hydra; not the options' use."""

import difflib
import re
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fedq.config.option import declared, former_names, shown
from fedq.config.problem import ConfigError, Problem
from fedq.config.rules import value_of
from fedq.config.schema import GROUPS, OPEN, Config

# A complete choice of `model` or `data`: the experiment's settings of that group are not merged into it.
STAGED = "staged"


def conf_folder() -> Path:
    """fedq's own `conf/`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def own_conf() -> Path | None:
    """`conf/` of the folder where fedq is started, with the user's choices for any group; None if there is none."""
    folder = Path.cwd() / "conf"
    return folder if folder.is_dir() and folder.resolve() != conf_folder().resolve() else None


def compose(overrides: Sequence[str] = (), *, overlay: Path | None = None) -> Config:
    """The config that results from the overrides.

    `overlay`: a folder with the user's groups (`conf/` of an app), searched before fedq's own. If it holds
    `experiment/default.yaml`, that experiment is used where the overrides name none.
    Raises `ConfigError` with every unknown key, unknown choice and mistyped value, each with the nearest name.
    """
    overrides = [_today(o) for o in overrides]
    wanted = [_open_key(o) for o in overrides]
    added = [p for o in wanted if (p := _unknown_key(o)) is not None]
    try:
        config = _compose(wanted, overlay)
        if added:
            raise ConfigError(added)
    except ConfigError:
        raise
    except _refusals() as error:
        # Each override is tried on top of the app's default. So a default that fails alone is reported first.
        found = [p for o in _default(overrides, overlay) if (p := _problem(o, overlay)) is not None]
        found = found or [p for o in wanted if (p := _unknown_key(o) or _problem(o, overlay)) is not None]
        raise ConfigError(
            found or [Problem("overrides", list(overrides), str(error), "See fedq run --help")]
        ) from error
    return finished(config, overrides, overlay)


def finished(config: Config, overrides: Sequence[str], overlay: Path | None) -> Config:
    """The composed config, completed with its overrides, its overlay and the user's model and data arguments."""
    from omegaconf import OmegaConf

    config.overrides, config.overlay = [_today(o) for o in overrides], str(overlay) if overlay else None
    _read_former_names(config)
    for group, key in (("privacy", "budgets"), ("strategy", "weights")):
        options = getattr(config, group)
        if isinstance(given := getattr(options, key), dict):
            setattr(options, key, {str(name): value for name, value in given.items()})
    for group in ("model", "data"):
        if overlay is not None and f"{group}={STAGED}" in overrides:
            node = OmegaConf.to_container(OmegaConf.load(overlay / group / f"{STAGED}.yaml"))
            setattr(config, group, node)
        else:
            _keep_own_arguments(getattr(config, group), group, overrides)
    return config


def register() -> None:
    """Register the schema and the help page with Hydra; `fedq run` and `compose` need it."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="hydra/help", name="fedq", node=_help())


def hydra_arguments(overrides: Sequence[str], overlay: Path | None) -> list[str]:
    """The overrides as Hydra's own command line takes them, with the overlay and its default experiment."""
    path = [f"hydra.searchpath=[file://{overlay}]"] if overlay is not None else []
    return _default(overrides, overlay) + [_open_key(o) for o in overrides] + path


def _default(overrides: Sequence[str], overlay: Path | None) -> list[str]:
    """The override for an app's default experiment; [] if the user names an experiment or there is no default.

    `optional experiment: default` in config.yaml would make Hydra ignore `experiment=TYPO` without a message.
    """
    named = any(o.lstrip("+~").partition("=")[0] == "experiment" for o in overrides)
    own = overlay is not None and (overlay / "experiment" / "default.yaml").is_file()
    return ["experiment=default"] if own and not named else []


def typed(node: Any) -> Config:
    """Hydra's composed node -> `Config`; `ConfigError` for a `???` that has no value."""
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise ConfigError([Problem(k, "???", "must be set", f"Add {k}=VALUE") for k in missing])
    config = OmegaConf.to_object(node)
    if not isinstance(config, Config):
        raise TypeError(f"composed a {type(config).__name__}, not a Config")
    return config


def _compose(overrides: Sequence[str], overlay: Path | None) -> Config:
    import hydra

    register()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        return typed(hydra.compose("config", hydra_arguments(overrides, overlay)))


def _keep_own_arguments(node: dict[str, Any], group: str, overrides: Sequence[str]) -> None:
    """If the user sets `_target_`, drop the arguments of the replaced choice: they belong to another callable."""
    given = {o.lstrip("+").partition("=")[0] for o in overrides}
    if f"{group}._target_" in given:
        for key in [k for k in node if f"{group}.{k}" not in given]:
            del node[key]


def _open_key(override: str) -> str:
    """`model.width=3` -> `++model.width=3`: the arguments of a user's callable need no declaration."""
    opens = any(override.startswith((f"{prefix}.", f"{prefix}={{")) for prefix in OPEN)
    return f"++{override}" if opens else override


def _unknown_key(override: str) -> Problem | None:
    """A problem for an unknown key such as `+foo=1`, which Hydra accepts and fedq would ignore."""
    key, sign, value = override.partition("=")
    key = key.lstrip("+").partition("@")[0]
    if key in GROUPS and value.startswith("["):
        return Problem(key, value, "takes one choice", f"Use {key}=CHOICE")
    opens = (f"{prefix}." for prefix in OPEN)
    if not sign or key in known_keys() or key in GROUPS or key.startswith(("hydra", "~", *opens)):
        return None
    return Problem(key, value, "no such key", _nearest(key, [*known_keys(), *GROUPS]))


def _problem(override: str, overlay: Path | None) -> Problem | None:
    """What is wrong with one override when it is composed alone; None if nothing is."""
    key, sign, value = override.partition("=")
    key = key.lstrip("+~")
    try:
        _compose([override], overlay)
    except ConfigError:
        return None  # a `???` that another override fills
    except _refusals() as error:
        if not sign and not override.startswith("~"):
            return Problem(override, "", "an override has the form key=value", "See fedq run --help")
        if key in GROUPS:
            choices = _choices(key, overlay)
            if value in choices:  # a file of the user's: only the error's text shows what is wrong
                why = " ".join(f"{error} {error.__cause__ or ''}".split()).rstrip(".")
                plain = override.startswith(key)
                fix = f"Fix the file {key}/{value}.yaml" if plain else f"Use {key}={value}"
                return Problem(key, value, why, fix)
            return Problem(key, value, f"no such choice; there are {', '.join(choices)}", _nearest(value, choices))
        if key not in (known := known_keys()):
            return Problem(key, value, "no such key", _nearest(key, [*known, *GROUPS]))
        cause = str(error.__cause__ or error).splitlines()[0]
        return Problem(key, value, cause, f"{key} means: {known[key]}")
    return None


def _refusals() -> tuple[type[Exception], ...]:
    """Exceptions of Hydra, OmegaConf and YAML for a user's mistakes."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    return HydraException, OmegaConfBaseException, YAMLError, TypeError, ValueError, AttributeError


def _choices(group: str, overlay: Path | None) -> list[str]:
    folders = [conf_folder(), *([overlay] if overlay else [])]
    return sorted({p.stem for folder in folders for p in (folder / group).glob("*.yaml")})


def _nearest(name: str, known: Sequence[str]) -> str:
    leaf = {k.rpartition(".")[2]: k for k in known}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [
        leaf[m] for m in difflib.get_close_matches(name.rpartition(".")[2], list(leaf), n=1, cutoff=0.6)
    ]
    close = close or [k for k in known if name and name in k]
    return f"Did you mean {close[0]}?" if close else "fedq run --help lists what there is"


@cache
def known_keys() -> dict[str, str]:
    """Key of an experiment -> its meaning, with choices, bounds and condition."""
    return {key: option.line() for key, option in declared(Config).items()}


@cache
def path_keys() -> frozenset[str]:
    """Keys whose value is a path that is opened or written."""
    return frozenset(key for key, option in declared(Config).items() if option.holds == "path")


def _today(override: str) -> str:
    """The override with today's key and value where it has a former name, with a warning."""
    key, sign, value = override.partition("=")
    bare = key.lstrip("+")
    if bare not in (former := former_names(Config)):
        return override
    new, values = former[bare]
    _warn_renamed(bare, new, value, values.get(value, value))
    return f"{key[: len(key) - len(bare)]}{new}{sign}{values.get(value, value)}"


def _read_former_names(config: Config) -> None:
    """Move the values that a YAML file set under a former name to today's name, with a warning for each."""
    for former, (new, values) in former_names(Config).items():
        group, _, name = former.rpartition(".")
        value = value_of(config, former)
        if value is not None:
            today = values.get(value, value)
            _warn_renamed(former, new, value, today)
            group_today, _, name_today = new.rpartition(".")
            setattr(value_of(config, group_today), name_today, today)
            setattr(value_of(config, group), name, None)


def _warn_renamed(former: str, new: str, value: Any, today: Any) -> None:
    warnings.warn(
        f"{former}={value} is now {new}={today}; the old name works in this release only", FutureWarning, stacklevel=4
    )


def _help() -> dict[str, str]:
    settings = {key: f"{key}={shown(option.default)}" for key, option in declared(Config).items()}
    width = min(40, max(len(setting) for setting in settings.values()))
    keys = "\n".join(f"  {settings[key]:{width}}  {option.line()}" for key, option in declared(Config).items())
    template = f"""fedq run [KEY=VALUE | GROUP=CHOICE ...]    one federated experiment

Groups and their choices (GROUP=CHOICE):

$APP_CONFIG_GROUPS
Keys with their defaults, and their meaning (KEY=VALUE; model.* and data.* also take any argument of the callable):

{keys}

A folder of your own, conf/ where fedq is started (or --config-dir DIR), adds choices to every group. If it holds
experiment/default.yaml, that experiment runs where no experiment=NAME is given; ~experiment runs none.
fedq new DIR makes such an app.

Flags:
  --dry-run      print the cost of the run (epsilon, bytes, memory); trains nothing
  --insecure     runtime=deployment: accept a connection without encryption or without certificates
  --cfg job      print the composed config
  -m             sweep: every combination of KEY=A,B,C
  --help         this page; --hydra-help: Hydra's own

Examples:
  fedq run experiment=demo
  fedq run experiment=demo privacy=off
  fedq run -m experiment=demo privacy.target_epsilon=1,3,8
"""
    # Hydra fills $NAMES in the template; OmegaConf would read ${...}, which the text must not hold.
    return {"app_name": "fedq", "header": "", "footer": "", "template": re.sub(r"\$\{", "$ {", template)}
