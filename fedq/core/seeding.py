"""Seed torch's global generators for a while and restore them. Depends on torch's devices; not on models.

Layers that draw random numbers, such as dropout, use the generator of their device, and `torch.manual_seed` seeds all
of them. A generator that is not restored would continue from a seed that others know.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, *devices: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of `devices`, and restore them afterwards."""
    metal = any(device.type == "mps" for device in devices)
    before = torch.mps.get_rng_state() if metal else None  # fork_rng does not support MPS
    with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if before is not None:
                torch.mps.set_rng_state(before)
