"""What names the code that a data owner has reviewed: a digest of a model. Knows configs and source files."""

import hashlib
import importlib.util
import json
from pathlib import Path

from fedq.config import Config


def model_digest(config: Config) -> str:
    """SHA-256 (hex) of the model's configuration and of the source file that its `_target_` names; runs none of it.

    "" where the source cannot be found. What that file imports is not in it: name the bundle as well.
    """
    target = str(config.model.get("_target_", ""))
    source = _source(target)
    if source is None:
        return ""
    asked = json.dumps([config.model, config.quant.__dict__], sort_keys=True, default=str).encode()
    return hashlib.sha256(b"fedq model 1" + len(asked).to_bytes(8, "little") + asked + source.read_bytes()).hexdigest()


def _source(target: str) -> Path | None:
    """Of `package.module.name`, the file of the longest part that is a module."""
    module = target.rpartition(".")[0]
    while module:
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
        if found is not None and found.origin is not None and Path(found.origin).is_file():
            return Path(found.origin)
        module = module.rpartition(".")[0]
    return None
