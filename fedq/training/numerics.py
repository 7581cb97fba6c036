"""What a run's bits depend on besides the config, and how to fix it. Depends on torch; not on models."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedq.training.hardware import Hardware

# Only avx2 and avx512f add products of int8 in 16 bits; each of the others has an instruction for it.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def fingerprint(hardware: Hardware, *, autocast: str) -> dict[str, Any]:
    """Versions, devices and threads. Equal bits are promised only for equal fingerprints, and only on a CPU."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "onnxruntime": _version("onnxruntime"),
        "opacus": _version("opacus"),
        "flwr": _version("flwr"),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_flags": cpu_flags(),
        "threads": torch.get_num_threads(),
        "device": hardware.describe(),
        "compile": hardware.compiled,
        "autocast": autocast,
    }


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The features of the first core that matter to int8 kernels; empty if Linux does not report them."""
    if not cpuinfo.exists():
        return []
    first = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    said = {word for key, _, value in lines if key.strip() in ("flags", "Features") for word in value.split()}
    return [flag for flag in _TELLING_FLAGS if flag in said]


def use_one_thread() -> None:
    """Use one torch thread for the rest of this process."""
    torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one torch thread: 1 and 2 give different bits, and 2 processes of 2 ran 20 times slower than 2 of 1."""
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
