"""Decide when to load the compiled kernels. Does not know what they compute.

They save a third of a nanosecond per value and ten microseconds per layer. Loading them takes about a second, or less
if the codec has already loaded numba. Torch's own operations give the same bits.
"""

import sys
from types import ModuleType

from fedq.core import jit

LEAST_WORK = 2**31  # values rounded by this process
LEAST_WORK_AFTER_NUMBA = 2**27  # the same if numba is loaded already
OF_A_CALL = 2**14  # the fixed cost of a call, in values

_work = 0


def kernels(num_values: int) -> ModuleType | None:
    """fedq.quant.kernels; None for too little work so far, no working numba, or FEDQ_JIT=0. Counts the work."""
    global _work
    _work += num_values + OF_A_CALL
    least = LEAST_WORK_AFTER_NUMBA if "numba" in sys.modules else LEAST_WORK
    return jit.load("fedq.quant.kernels") if _work >= least else None


def load() -> ModuleType | None:
    """Load the kernels now, for a process that will need them; None if they are off or numba does not work."""
    return kernels(LEAST_WORK)
