"""Latency of the int8 model and of its float32 reference model, measured in turns on this machine."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedq.quant.float_reference import export_float32
from fedq.quant.int8_model import Int8Model

BATCH = 64
_SECONDS = 0.4  # of timing: medians of dozens of calls on small models, of three on large ones
_CALLS = (3, 200)


@dataclass(frozen=True)
class Pace:
    """Speed of the int8 model over that of the float32 one, and where the int8 model's time goes."""

    speedup: float
    profile: dict[str, float]  # operator -> share of the kernels' time, the slowest first


def measure(model: nn.Module, int8: str | os.PathLike[str], inputs: np.ndarray) -> Pace:
    """Time the file `int8` of `model` against the float32 file of its reference: one thread, batches of 64, in turns.

    `inputs`: some examples, repeated or cut to a batch. ExportError where there is no float32 file.
    """
    batch = np.resize(inputs, (BATCH, *inputs.shape[1:]))
    ours = Int8Model(int8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float32.onnx"
        export_float32(model, inputs.shape[1:], path, input_dtype=torch.from_numpy(batch).dtype)
        plain = Int8Model(path)
        fast, slow = in_turns(lambda: ours(batch), lambda: plain(batch))
    return Pace(slow / fast, dict(ours.profile(batch, calls=3)))


def in_turns(*calls: Callable[[], object], seconds: float = _SECONDS) -> list[float]:
    """Median seconds of each, measured in turns: what else the machine does meets all of them alike."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    least, most = _CALLS
    while len(taken[0]) < least or (len(taken[0]) < most and time.perf_counter() < end):
        for call, times in zip(calls, taken, strict=True):
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
    return [statistics.median(times) for times in taken]
