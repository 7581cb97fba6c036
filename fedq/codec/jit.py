"""Hands out the compiled kernels where they pay and work. Knows when to use them; not what they compute.

Numba takes about a second to import and load the kernels, which a client's process that serves one message would
never win back. So numpy works until it has taken about as long, and numba is loaded then: whichever it should have
been, no more than twice the time is spent. Both give the same bits. `FEDQ_JIT=0` in the environment turns the
kernels off.
"""

from types import ModuleType

from fedq.core import jit

LEAST_VALUES = 262_144  # of a vector; numpy takes a few milliseconds for fewer
LEAST_WORK = 2**26  # values that this process has packed or unpacked; numpy takes 3 to 20 ns for each

_work = 0


def count(num_values: int) -> None:
    """So many values are about to be packed or unpacked in this process."""
    global _work
    _work += num_values  # of two threads at once one may be lost: no bit depends on it


def kernels(num_values: int) -> ModuleType | None:
    """fedq.codec.kernels, or None: few values, or so far in this process; no working numba, or turned off."""
    return None if num_values < LEAST_VALUES or _work < LEAST_WORK else jit.load("fedq.codec.kernels")


def load() -> ModuleType | None:
    """The kernels at once, for a process that knows that it will need them; None as above."""
    count(LEAST_WORK)
    return kernels(LEAST_VALUES)
