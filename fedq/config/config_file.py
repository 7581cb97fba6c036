"""The resolved config as a file of the run folder. Knows OmegaConf's YAML; not what the options mean."""

import shlex
from dataclasses import asdict
from pathlib import Path

from fedq.config.schema import Config
from fedq.config.untrusted import check_yaml


def write_config(config: Config, path: Path) -> None:
    """The resolved config, and on top the command that made it."""
    from omegaconf import OmegaConf

    whole = asdict(config)
    overrides = whole.pop("overrides")
    whole.pop("overlay", None)
    path.write_text(
        f"# fedq run {' '.join(shlex.join(overrides).split())[:10_000]}\n{OmegaConf.to_yaml(OmegaConf.create(whole))}",
        encoding="utf-8",
    )


def read_config(path: Path) -> Config:
    """The config that `write_config` wrote, resolved as it stands: no choice file is read again.

    ValueError for a file that is none. Options that are not in it have their defaults, so older runs can be read.
    Another party may have written it: it holds plain values (`untrusted`), and its `_target_`s are text here.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    check_yaml(path)
    try:
        read = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{path}: not the config of a run ({told}); restore the file or run again") from None
    if not isinstance(read, Config):
        raise ValueError(f"{path}: holds no options; restore the file or run again")
    return read
