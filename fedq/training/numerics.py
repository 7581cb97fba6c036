"""What the bits of a run depend on beside its config, and the one setting that fixes them. Knows torch; not models."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from fedq.training.hardware import Hardware


def fingerprint(hardware: Hardware, *, autocast: str) -> dict[str, Any]:
    """Versions, devices and threads. Bits are promised between equal fingerprints only, and on a CPU only."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "onnxruntime": _version("onnxruntime"),
        "opacus": _version("opacus"),
        "flwr": _version("flwr"),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": hardware.describe(),
        "compile": hardware.compiled,
        "autocast": autocast,
    }


def use_one_thread() -> None:
    """One torch thread for the rest of this process, which does nothing else."""
    torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: 1 and 2 give different bits, and 2 processes of 2 ran 20 times slower than 2 of 1."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
