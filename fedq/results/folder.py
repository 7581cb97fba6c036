"""The run folder and its model file. Knows names, paths and arrays; not the meaning of files."""

import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np

from fedq.core.durable import write_bytes


def new_run_folder(root: Path | str, name: str, *, now: datetime | None = None) -> Path:
    """Create and return the folder `root/DATE/TIME-NAME-ID`, which is unique even within a second. Raises OSError."""
    moment = now or datetime.now()
    day = Path(root) / moment.strftime("%Y-%m-%d")
    try:
        day.mkdir(parents=True, exist_ok=True)
        for _ in range(100):
            folder = day / f"{moment:%H-%M-%S}-{_safe_name(name)}-{secrets.token_hex(3)}"
            try:
                folder.mkdir()  # atomic: if two runs draw the same name, one fails here and draws another id
            except FileExistsError:
                continue
            return folder
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise type(problem)(f"{root}: cannot make a run folder here ({reason}); choose another root") from None
    raise FileExistsError(f"{day}: 100 run folders of this second exist already; start again")


def _safe_name(name: str) -> str:
    """At most 40 characters that every file system accepts: 'my run/../x' -> 'my-run-x'."""
    words = re.sub(r"[^A-Za-z0-9_.=-]+", "-", name)
    return re.sub(r"[-.]{2,}", "-", words)[:40].strip("-.") or "run"


def write_model(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `model.safetensors` in one atomic step: arrays only, no metadata. ValueError for an array of no numbers."""
    from safetensors.numpy import save

    plain: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        # safetensors 0.8 writes memory in its order, which would scramble a transposed array: C order first.
        array = np.asarray(value, order="C")
        if name == "__metadata__" or array.dtype.kind not in "biuf":
            raise ValueError(
                f"array {name!r} of dtype {array.dtype}: safetensors holds named arrays of numbers; drop it"
            )
        plain[name] = array
    write_bytes(Path(path), save(plain))


def read_model(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of `model.safetensors`; nothing is unpickled. ValueError if the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(Path(path).read_bytes()))
    except SafetensorError as problem:
        raise ValueError(f"{path}: not a safetensors file ({problem}); restore it or run again") from None
