"""The devices for training, and what this machine has. Depends on torch's devices; not on models, data or configs.

Nothing here is part of an experiment's identity: the same experiment may train on a CPU today and on a GPU tomorrow.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

CPU = torch.device("cpu")
DEVICES = ("cuda", "mps", "cpu")  # `auto` takes the first one that is available


@dataclass(frozen=True)
class Hardware:
    """The devices of a step. The first device holds the model; each batch is split over all of them."""

    devices: tuple[torch.device, ...] = (CPU,)
    compiled: bool = False  # use torch.compile for forward pass and loss of full batches

    @property
    def device(self) -> torch.device:
        return self.devices[0]

    def describe(self) -> str:
        """A short text for fingerprints, such as `cpu`, `mps` or `2 x NVIDIA A100-SXM4-40GB`."""
        kind = self.device.type
        name = torch.cuda.get_device_name(self.device) if kind == "cuda" else kind
        return name if len(self.devices) == 1 else f"{len(self.devices)} x {name}"


def present(device: str) -> bool:
    """Whether this process can use a device of this type."""
    if device == "cuda":
        return torch.cuda.is_available()
    if device == "mps":
        return torch.backends.mps.is_available()
    return device == "cpu"


def choose(device: str) -> torch.device:
    """The device of this type, or for `auto` the best available one; of several GPUs the first visible one."""
    kind = next(filter(present, DEVICES)) if device == "auto" else device
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


def gpus() -> tuple[torch.device, ...]:
    """Every GPU that this process sees; CUDA_VISIBLE_DEVICES limits them."""
    return tuple(torch.device("cuda", i) for i in range(torch.cuda.device_count()))


def no_compiler(device: torch.device) -> str | None:
    """What torch.compile would miss at its first run, minutes into the work; None if nothing is missing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "Triton, which compiles kernels for GPUs"
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler ({compiler})"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.is_file() else f"Python's headers ({header})"
