"""torch's global generators, seeded for a while and put back. Knows torch's devices; no models and no caller.

Layers that draw, such as dropout, draw from the generator of the device they are on, and `torch.manual_seed` seeds
them all. One that is not put back would go on from a seed that others know.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, *devices: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of `devices` here, and put them back after."""
    metal = any(device.type == "mps" for device in devices)
    before = torch.mps.get_rng_state() if metal else None  # fork_rng does not know how
    with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if before is not None:
                torch.mps.set_rng_state(before)
