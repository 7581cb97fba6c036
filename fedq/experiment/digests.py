"""The digest of a model, by which a policy names code that its owner has reviewed. Knows configs and source files."""

import hashlib
import json
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from fedq.config import Config


def model_digest(config: Config) -> str:
    """SHA-256 (hex) of the model's configuration and of the source file of its `_target_`; runs none of that code.

    "" if the source file is not found. The digest does not cover modules that the file imports, so a policy should
    name the bundle too.
    """
    target = str(config.model.get("_target_", ""))
    source = _source(target)
    if source is None:
        return ""
    asked = json.dumps([config.model, config.quant.__dict__], sort_keys=True, default=str).encode()
    return hashlib.sha256(b"fedq model 1" + len(asked).to_bytes(8, "little") + asked + source.read_bytes()).hexdigest()


def _source(target: str) -> Path | None:
    """The source file of a target `package.module.name`: the longest prefix that is a module."""
    source: Path | None = None
    places: Sequence[str] | None = None
    name = ""
    for part in target.split(".")[:-1]:
        name = f"{name}.{part}" if name else part
        # Not importlib.util.find_spec, which imports the packages on the way.
        found = PathFinder.find_spec(name, places)
        if found is None:
            break
        if found.origin is not None and Path(found.origin).is_file():
            source = Path(found.origin)
        places = found.submodule_search_locations
        if places is None:
            break
    return source
