"""Writes and reads the resolved config in a run folder. Knows OmegaConf's YAML; not the meaning of options."""

import shlex
from dataclasses import asdict
from pathlib import Path

from fedq.config.schema import Config
from fedq.config.untrusted import check_yaml


def write_config(config: Config, path: Path) -> None:
    """Write the resolved config, with the command that made it as a comment on top."""
    from omegaconf import OmegaConf

    options = asdict(config)
    overrides = options.pop("overrides")
    options.pop("overlay", None)
    path.write_text(
        f"# fedq run {' '.join(shlex.join(overrides).split())[:10_000]}\n"
        f"{OmegaConf.to_yaml(OmegaConf.create(options))}",
        encoding="utf-8",
    )


def read_config(path: Path) -> Config:
    """Read a config that `write_config` wrote; no choice file is read again.

    ValueError if the file is not such a config. Options that it lacks get their defaults, so older runs can be read.
    Another party may have written the file: only plain values are accepted (`untrusted`), and a `_target_` stays text.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    check_yaml(path)
    try:
        read = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: not the config of a run ({why}); restore the file or run again") from None
    if not isinstance(read, Config):
        raise ValueError(f"{path}: holds no options; restore the file or run again")
    return read
