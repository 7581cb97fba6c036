"""Decide when to load the compiled clipping kernels, from public numbers alone. Does not know what they compute.

They save about four nanoseconds for each value of a per-example gradient. Loading them takes about a second, or less
if another package has already loaded numba. Kernels and torch's operations differ in the last bits of a norm, so a fit
uses one of them from its first step to its last, and the choice depends on no number of the client's own data.
"""

import sys
from types import ModuleType

from fedq.core import jit

LEAST_WORK = 2**28  # values of per-example gradients that this process computed
LEAST_WORK_AFTER_NUMBA = 2**24  # the same if numba is loaded already

_work = 0


def kernels(num_values: int) -> ModuleType | None:
    """fedq.privacy.kernels for a fit of so many values; None for too little work, no numba, or FEDQ_JIT=0."""
    global _work
    _work += num_values
    least = LEAST_WORK_AFTER_NUMBA if "numba" in sys.modules else LEAST_WORK
    return jit.load("fedq.privacy.kernels") if _work >= least else None
