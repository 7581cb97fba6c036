"""The resolved config as a file of the run folder. Knows OmegaConf's YAML; not what the options mean."""

import shlex
from dataclasses import asdict
from pathlib import Path

from fedq.config.schema import Config


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
