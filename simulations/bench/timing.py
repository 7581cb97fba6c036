"""Time contenders side by side: interleaved, medians, pinned threads. Knows the machine; not what is compared."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# What numpy, torch and their BLAS read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_CPUINFO = Path("/proc/cpuinfo")
_TELLING_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")

# One run of a contender, timed from outside; one that must clock itself returns its own seconds.
Contender = Callable[[], float | None]


@dataclass(frozen=True)
class Effort:
    """How often each contender runs."""

    repeats: int


QUICK, FULL = Effort(repeats=7), Effort(repeats=35)


def medians(contenders: Mapping[str, Contender], *, repeats: int, warmups: int = 1) -> dict[str, float]:
    """Median seconds of one run of each.

    All take a turn in every repeat, in an order that is reversed from one repeat to the next: what else the
    machine does, or how warm it is, meets all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(warmups + repeats):
        for name in list(contenders)[:: 1 if repeat % 2 == 0 else -1]:
            taken = _seconds(contenders[name])
            if repeat >= warmups:
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _seconds(contender: Contender) -> float:
    begun = time.perf_counter()
    own = contender()
    return time.perf_counter() - begun if own is None else own


def pin_threads() -> None:
    """One thread for every numerical library, also in child processes. Call it before numpy is imported."""
    os.environ.update(dict.fromkeys(_THREADS, "1"))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """The CPU, its flags, the threads, and how busy the machine is: what a timing cannot be read without."""
    about = _cpuinfo()
    flags = " ".join(flag for flag in _TELLING_FLAGS if flag in about.get("flags", about.get("Features", "")).split())
    threads = os.environ.get(_THREADS[0], "not pinned")
    name = about.get("model name", platform.processor() or platform.machine())
    cores, load = num_cores(), os.getloadavg()[0]
    text = f"{cores} cores of {name} ({flags}), {threads} numerical thread(s), load {load:.1f}"
    if load > cores / 4:
        text += "\nOther programs are at work: a contender of one process loses more by it than one of many."
    return text


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core."""
    if not _CPUINFO.exists():
        return {}
    first = _CPUINFO.read_text(encoding="utf-8").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
