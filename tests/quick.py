"""`compose` for tests that compose hundreds of configs: Hydra composes each set of choices once, in 0.2 s.

Values are then set on a copy, by Hydra's own parser and in Hydra's own way, in 0.02 s. Whatever is not a plain choice
or value, or fails, goes to `fedq.config.compose`, which names the error. tests/config/test_quick.py compares the two.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedq.config import Config, ConfigError, own_conf
from fedq.config import compose as by_hydra
from fedq.config.compose import _open_key, finished, known_keys, typed
from fedq.config.schema import GROUPS, OPEN

# A group's choice is one word; lists, deletions, additions and packages are left to Hydra.
CHOICE = re.compile(rf"({'|'.join(map(re.escape, GROUPS))})=(\w+)")
parser = OverridesParser.create()


def compose(overrides: Sequence[str] = (), *, overlay: Path | None = None) -> Config:
    chosen = [word for word in overrides if CHOICE.fullmatch(word)]
    values = [word for word in overrides if word not in chosen]
    if overlay is None and own_conf() is None and all(map(_is_plain, values)):
        try:
            return finished(_changed(_of(tuple(chosen)), values), overrides, None)
        except (HydraException, OmegaConfBaseException, ConfigError):
            pass  # fedq's own message is wanted
    return by_hydra(overrides, overlay=overlay)


@cache
def _of(chosen: tuple[str, ...]) -> Config:
    return by_hydra(chosen)


def _is_plain(word: str) -> bool:
    key, sign, _ = word.partition("=")
    opened = key.startswith(tuple(f"{prefix}." for prefix in OPEN)) and not key.endswith("._target_")
    return bool(sign) and (key in known_keys() or opened)


def _changed(config: Config, values: Sequence[str]) -> Config:
    node: Any = OmegaConf.structured(config)
    OmegaConf.set_struct(node, True)
    ConfigLoaderImpl._apply_overrides_to_config(parser.parse_overrides([_open_key(word) for word in values]), node)
    return typed(node)
