"""Hands out the compiled kernels where they pay and work. Knows when to use them; not what they compute.

Numba is an optional dependency and slow to import: whoever asks is handed None, and uses numpy, wherever the
kernels would not help. Both give the same bits. `FEDQ_JIT=0` in the environment turns the kernels off.
"""

import importlib
import logging
import os
import sys
import threading
from types import ModuleType

ENVIRONMENT = "FEDQ_JIT"
# Below it numpy takes a few milliseconds, and the import of numba would not pay.
LEAST_VALUES = 262_144

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_kernels: ModuleType | None = None
_failed = False


def kernels(num_values: int) -> ModuleType | None:
    """fedq.codec.kernels, or None: few values, no working numba, or turned off."""
    if num_values < LEAST_VALUES or not _wanted() or _failed:
        return None
    return _kernels or _load()


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
                _kernels = importlib.import_module("fedq.codec.kernels")
            # Numba fails in many ways: a numpy that is too new for it, no directory to cache in, a broken LLVM.
            except Exception as error:
                _failed = True
                _log.info("codec works without numba, several times slower: %s: %s", type(error).__name__, error)
        return _kernels
