"""Quantization beside float32: a training step, the delivered int8 model, and from where a sparse one would pay.

Knows the three parts and their order; what each compares, it says itself.
"""

from collections.abc import Iterator

import torch

from fedq.data.idx import HOW_TO_GET
from fedq.training.numerics import one_thread
from simulations.bench import quant_int8, quant_sparse, quant_steps
from simulations.bench.row import PeerAbsentError, Row
from simulations.bench.timing import Effort


def rows(effort: Effort) -> Iterator[Row]:
    """Five minutes; PeerAbsentError at the end where there is no Fashion-MNIST to train on."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        yield from quant_steps.rows(effort)
        yield from quant_sparse.rows(effort)
        dataset = quant_int8.data()
        yield from quant_int8.rows(dataset, effort)
        if dataset is None:
            raise PeerAbsentError(f"Fashion-MNIST is not installed: no row of agreement. {HOW_TO_GET}")
