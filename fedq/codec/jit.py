"""Decide when to load the compiled kernels. Does not know what they compute.

Numba takes about a second to import and to load the kernels. A client process that serves one message would never
gain that second back. So numpy is used until it has taken about as long, and numba is loaded then: in the worst case
the process spends twice the time of the better choice. Both give the same bits. `FEDQ_JIT=0` in the environment turns
the kernels off.
"""

from types import ModuleType

from fedq.core import jit

LEAST_VALUES = 262_144  # in a vector; below this, numpy takes a few milliseconds
LEAST_WORK = 2**26  # values packed or unpacked by this process; numpy takes 3 to 20 ns for each

_work = 0


def count(num_values: int) -> None:
    """Record that this process is about to pack or unpack `num_values` values."""
    global _work
    _work += num_values  # a race may lose one update; no result depends on it


def kernels(num_values: int) -> ModuleType | None:
    """fedq.codec.kernels; None for few values, little work so far, no working numba, or FEDQ_JIT=0."""
    return None if num_values < LEAST_VALUES or _work < LEAST_WORK else jit.load("fedq.codec.kernels")


def load() -> ModuleType | None:
    """Load the kernels now, for a process that will need them; None if they are off or numba does not work."""
    count(LEAST_WORK)
    return kernels(LEAST_VALUES)
