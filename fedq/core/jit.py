"""Load a package's compiled kernels, or report why not. Depends on numba; does not know what the kernels compute.

Without the kernels, everything runs on numpy or torch and gives the same bits. `FEDQ_JIT=0` in the environment turns
all kernels off.
"""

import functools
import importlib
import logging
import os
import sys
from types import ModuleType

ENVIRONMENT = "FEDQ_JIT"

_log = logging.getLogger(__name__)


@functools.cache  # two threads may both load; they get the same module
def load(module: str) -> ModuleType | None:
    """The module, with every kernel in its `__all__` compiled or read from numba's cache; None without numba.

    All kernels are loaded now, so that none fails later in the middle of work. It takes about a second, mostly for
    numba's import, once per process.
    """
    setting = os.environ.get(ENVIRONMENT, "1")
    if setting not in ("0", "1"):
        raise ValueError(f"{ENVIRONMENT}={setting!r}: must be 0 or 1; leave it out to use numba where it is installed")
    if setting == "0":
        return None
    try:
        if sys.byteorder != "little":
            raise ImportError("the kernels are written for little-endian machines")
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            getattr(loaded, name).compile()
    # Numba fails in many ways: a numpy that is too new, no cache directory, a broken LLVM.
    except Exception as error:
        _log.info("%s: runs without numba, several times slower: %s: %s", module, type(error).__name__, error)
        return None
    return loaded
