"""Loads a room's compiled kernels, or says why not. Knows numba's ways to fail; not what kernels compute.

Without them everything works on numpy or torch and gives the same bits. `FEDQ_JIT=0` in the environment turns all
kernels off.
"""

import functools
import importlib
import logging
import os
import sys
from types import ModuleType

ENVIRONMENT = "FEDQ_JIT"

_log = logging.getLogger(__name__)


@functools.cache  # two threads may both load, and get the same module
def load(module: str) -> ModuleType | None:
    """The module, with every kernel that its `__all__` names compiled or read from numba's cache; None without numba.

    All of them now: none fails later, in the middle of work. About a second, most of it numba's import, and once.
    """
    told = os.environ.get(ENVIRONMENT, "1")
    if told not in ("0", "1"):
        raise ValueError(f"{ENVIRONMENT}={told!r}: must be 0 or 1; leave it out to use numba where it is installed")
    if told == "0":
        return None
    try:
        if sys.byteorder != "little":
            raise ImportError("the kernels are written for little-endian machines")
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            getattr(loaded, name).compile()
    # Numba fails in many ways: a numpy that is too new for it, no directory to cache in, a broken LLVM.
    except Exception as error:
        _log.info("%s: works without numba, several times slower: %s: %s", module, type(error).__name__, error)
        return None
    return loaded
