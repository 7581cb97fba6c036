"""Turns a function into machine code at its first call. Knows numba; not what the functions compute.

No `parallel=True`: numba's own threads survive neither a fork nor being called from several threads. No fastmath.
"""

import hashlib
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit, types

_SETTINGS = {"nogil": True, "error_model": "numpy"}
i8, u8, f4, f8, i64, u64 = types.int8, types.uint8, types.float32, types.float64, types.int64, types.uint64
boolean, void = types.boolean, types.void

inner = njit(inline="never", **_SETTINGS)  # called by kernels only


@cache
def _digest(folder: Path) -> str:
    """Of all files that go into the kernels of a room."""
    files = [Path(__file__), *sorted(folder.glob("kernel*.py"))]
    return hashlib.blake2b(b"".join(path.read_bytes() for path in files), digest_size=4).hexdigest()


class Kernel:
    """Compiled, or read from numba's cache, at its first call, and for one signature whatever it is called with."""

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        # Numba names the file in its cache after this, and by itself looks only at the file that the kernel is in.
        function.__qualname__ += f"_{_digest(Path(function.__code__.co_filename).parent)}"
        self._function, self._signature = function, signature
        self._dispatcher = njit(cache=True, **_SETTINGS)(function)
        self._lock = threading.Lock()
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return (self._compiled or self.compile())(*arguments)

    def compile(self) -> Any:
        """What numba made of it."""
        with self._lock:
            if self._compiled is None:
                try:
                    self._dispatcher.compile(self._signature)
                except Exception:  # a cache that is damaged, or cannot be written
                    self._dispatcher = njit(**_SETTINGS)(self._function)
                    self._dispatcher.compile(self._signature)
                self._dispatcher.disable_compile()
                self._compiled = self._dispatcher
        return self._compiled


def kernel(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator: a Kernel of these types."""
    return lambda function: Kernel(function, result(*arguments))


def reads(dtype: Any) -> Any:
    """What any contiguous array converts to: a packet is read-only, and its floats may lie anywhere."""
    return types.Array(dtype, 1, "C", readonly=True, aligned=False)


def writes(dtype: Any) -> Any:
    return types.Array(dtype, 1, "C", aligned=False)


def eight(dtype: Any) -> Any:
    """A tuple of eight of a type."""
    return types.UniTuple(dtype, 8)
