"""Compile a function to machine code at its first call. Depends on numba; does not know what the functions compute.

No `parallel=True`: numba's own threads survive neither a fork nor a call from several threads. No fastmath.
"""

import hashlib
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit, types

_SETTINGS = {"nogil": True, "error_model": "numpy"}
i8, u8, f4, f8 = types.int8, types.uint8, types.float32, types.float64
i32, i64, u64 = types.int32, types.int64, types.uint64
boolean, void = types.boolean, types.void

inner = njit(inline="never", **_SETTINGS)  # for functions that only kernels call


@cache
def _digest(folder: Path) -> str:
    """A digest of all files with kernels of a package."""
    files = [Path(__file__), *sorted(folder.glob("kernel*.py"))]
    return hashlib.blake2b(b"".join(path.read_bytes() for path in files), digest_size=4).hexdigest()


class Kernel:
    """A function that is compiled, or read from numba's cache, at its first call, for one signature only."""

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        # The name becomes part of numba's cache key. By itself numba checks only the file that holds the kernel.
        function.__qualname__ += f"_{_digest(Path(function.__code__.co_filename).parent)}"
        self._function, self._signature = function, signature
        self._dispatcher = njit(cache=True, **_SETTINGS)(function)
        self._lock = threading.Lock()
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return (self._compiled or self.compile())(*arguments)

    def compile(self) -> Any:
        """Compile now and return numba's function."""
        with self._lock:
            if self._compiled is None:
                try:
                    self._dispatcher.compile(self._signature)
                except Exception:  # a damaged cache, or one that cannot be written
                    self._dispatcher = njit(**_SETTINGS)(self._function)
                    self._dispatcher.compile(self._signature)
                self._dispatcher.disable_compile()
                self._compiled = self._dispatcher
        return self._compiled


def kernel(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator: make a Kernel with these types."""
    return lambda function: Kernel(function, result(*arguments))


def reads(dtype: Any) -> Any:
    """A read-only array type that any contiguous array converts to: a packet is read-only, and may be unaligned."""
    return types.Array(dtype, 1, "C", readonly=True, aligned=False)


def writes(dtype: Any) -> Any:
    return types.Array(dtype, 1, "C", aligned=False)


def eight(dtype: Any) -> Any:
    """A tuple of eight values of one type."""
    return types.UniTuple(dtype, 8)
