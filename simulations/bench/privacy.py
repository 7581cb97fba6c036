"""DP-SGD: a step beside Opacus' and beside one without privacy, what discrete noise costs, epsilon, a ledger, an audit.

Knows the parts and their order; what each compares, it says itself.
"""

from collections.abc import Iterator

import torch

from fedq.training.numerics import one_thread
from simulations.bench import privacy_audit, privacy_epsilon, privacy_ledger, privacy_steps
from simulations.bench.row import Row
from simulations.bench.timing import Effort


def rows(effort: Effort) -> Iterator[Row]:
    """Under a minute; compiling takes half of it, the first time."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        yield from privacy_epsilon.rows(effort)
        yield from privacy_ledger.rows(effort)
        yield from privacy_audit.rows()
        yield from privacy_steps.rows(effort)
