"""Hands out the compiled kernels where they pay and work. Knows when to use them; not what they compute.

Numba takes about a second to import and load the kernels, which a client's process that serves one message would
never win back. So numpy works until it has taken about as long, and numba is loaded then: whichever it should have
been, no more than twice the time is spent. Both give the same bits. `FEDQ_JIT=0` in the environment turns the
kernels off.
"""

import importlib
import logging
import os
import sys
import threading
from types import ModuleType

ENVIRONMENT = "FEDQ_JIT"
LEAST_VALUES = 262_144  # of a vector; numpy takes a few milliseconds for fewer
LEAST_WORK = 2**26  # values that this process has packed or unpacked; numpy takes 3 to 20 ns for each

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_kernels: ModuleType | None = None
_failed = False
_work = 0


def count(num_values: int) -> None:
    """So many values are about to be packed or unpacked in this process."""
    global _work
    _work += num_values  # of two threads at once one may be lost: no bit depends on it


def kernels(num_values: int) -> ModuleType | None:
    """fedq.codec.kernels, or None: few values, or so far in this process; no working numba, or turned off."""
    if num_values < LEAST_VALUES or _work < LEAST_WORK or not _wanted() or _failed:
        return None
    return _kernels or _load()


def load() -> ModuleType | None:
    """The kernels at once, for a process that knows that it will need them; None as above."""
    count(LEAST_WORK)
    return kernels(LEAST_VALUES)


def _wanted() -> bool:
    told = os.environ.get(ENVIRONMENT, "1")
    if told not in ("0", "1"):
        raise ValueError(f"{ENVIRONMENT}={told!r}: must be 0 or 1; leave it out to use numba where it is installed")
    return told == "1"


def _load() -> ModuleType | None:
    global _kernels, _failed
    with _lock:
        if _kernels is None and not _failed:
            try:
                if sys.byteorder != "little":
                    raise ImportError("the kernels are written for little-endian machines")
                loaded = importlib.import_module("fedq.codec.kernels")
                for name in loaded.__all__:  # all of them now: none fails later, in the middle of a packet
                    getattr(loaded, name).compile()
                _kernels = loaded
            # Numba fails in many ways: a numpy that is too new for it, no directory to cache in, a broken LLVM.
            except Exception as error:
                _failed = True
                _log.info("codec works without numba, several times slower: %s: %s", type(error).__name__, error)
        return _kernels
