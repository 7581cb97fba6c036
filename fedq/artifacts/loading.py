"""Loads the int8 model of a finished run as a callable over arrays. Knows the run folder alone."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedq.quant import Int8Model


def load(run: str | Path) -> "Int8Model":
    """The int8 model of a run folder: float32 inputs (n, ...) -> float32 outputs (n, k), on int8 kernels.

    Raises `FileNotFoundError` if there is no int8 model (quant=off, or not a run folder).

    >>> import fedq, numpy, tempfile
    >>> overrides = ["rounds=1", "clients=2", "quant=int8"]
    >>> result = fedq.run(overrides, root=tempfile.mkdtemp(), progress=False)
    >>> fedq.load(result.folder)(numpy.zeros((3, 1, 8, 8), numpy.float32)).shape
    (3, 10)
    """
    from fedq.quant import Int8Model

    path = Path(run) / "model.onnx"
    if not path.is_file():
        why = "its config has quant=off" if (Path(run) / "result.json").is_file() else "it is not a finished run"
        raise FileNotFoundError(f"{run}: no model.onnx here, {why}; use a run with quant=int8")
    return Int8Model(path)
