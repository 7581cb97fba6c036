"""JSON that every reader accepts: without NaN and Infinity. Knows values; not files."""

import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON text of `value`. NaN and infinities become null; numpy values become plain. Raises ValueError."""
    return json.dumps(_plain(value, "value"), indent=indent, allow_nan=False, ensure_ascii=False)


def loads(text: str) -> Any:
    """The value of a JSON text. ValueError for NaN and Infinity, which `json.loads` accepts."""
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON; write null")


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            # json.dumps would write 1 and "1" as the same key, so a reader would lose one of them.
            if not isinstance(key, str):
                raise ValueError(f"{where}: key {key!r} is not a string; JSON keys are, use {str(key)!r}")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    kind = type(value).__name__
    raise ValueError(f"{where} is a {kind}, which JSON cannot hold; pass numbers, text, lists, dicts or None")
