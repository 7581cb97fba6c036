"""Measure the latency of the int8 model and of its float32 reference model in turns on this machine."""

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
_SECONDS = 0.4  # seconds of timing: enough for dozens of calls of a small model and three of a large one
_CALLS = (3, 200)


@dataclass(frozen=True)
class Latency:
    """Speed-up of the int8 model over the float32 model, and the share of each operator in its time."""

    speedup: float
    profile: dict[str, float]  # operator -> share of the kernels' time, slowest first


def measure(model: nn.Module, int8: str | os.PathLike[str], inputs: np.ndarray) -> Latency:
    """Time the file `int8` against the float32 reference of `model`: one thread, batches of 64, alternating calls.

    `inputs`: some examples (n, ...), repeated or cut to a batch. ExportError if the float32 file cannot be exported.
    """
    batch = np.resize(inputs, (BATCH, *inputs.shape[1:]))
    ours = Int8Model(int8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float32.onnx"
        export_float32(model, inputs.shape[1:], path, input_dtype=torch.from_numpy(batch).dtype)
        plain = Int8Model(path)
        fast, slow = measure_alternately(lambda: ours(batch), lambda: plain(batch))
    return Latency(slow / fast, dict(ours.profile(batch, calls=3)))


def measure_alternately(*calls: Callable[[], object], seconds: float = _SECONDS) -> list[float]:
    """Median seconds of each call. Calls alternate, so that other load on the machine affects all of them equally."""
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
