"""One spend as the ledger holds it: a mechanism with all its numbers, and what it was for.
Knows numbers and labels; not files, hashes, budgets or data.
"""

import math
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import cast

from fedq.privacy.accounting import AnyMechanism, Mechanism, PureDP

# What a spend may be of; a test holds each against what it costs.
GAUSSIAN, DISCRETE, LAPLACE = "gaussian", "discrete-gaussian", "discrete-laplace"
MECHANISMS = (GAUSSIAN, DISCRETE, LAPLACE)


@dataclass(frozen=True)
class Spend:
    """What is about to be spent: enough to recompute its epsilon, and to say what it was for."""

    noise_multiplier: float  # noise std (Laplace: scale) / clip_norm
    clip_norm: float
    sample_rate: float
    steps: int
    delta: float  # the delta that the run reports at; the mechanism itself has none
    nominal_examples: int  # public; sample_rate * nominal_examples divides the noised sum
    noise_source: str  # "os" or "seeded"
    data: str
    run: str
    round: int
    attempt: int = 0
    bundle: str = ""  # digest of the code that ran
    unit: str = "example"
    adjacency: str = "add-or-remove-one"
    mechanism: str = GAUSSIAN  # of MECHANISMS; Gaussian: Poisson-subsampled at `sample_rate`, `steps` times

    def __post_init__(self) -> None:
        for name, kind in _kinds():  # a ledger of 10,000 rows is checked at every admission
            value = getattr(self, name)
            if type(value) is kind:
                continue
            if kind is not float or not isinstance(value, int | float):
                raise ValueError(f"{name}={value!r}: must be of type {kind.__name__}")
            # Stored as plain Python numbers: what comes back from SQLite must hash as it did going in.
            object.__setattr__(self, name, float(value))
        if self.mechanism not in MECHANISMS:
            raise ValueError(f"mechanism={self.mechanism!r}: must be one of {', '.join(MECHANISMS)}")
        if self.noise_source not in ("os", "seeded"):
            raise ValueError(f"noise_source={self.noise_source!r}: must be os or seeded")
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip_norm={self.clip_norm}: must be a finite number above 0")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta}: must lie between 0 and 1")
        self.as_mechanism()  # checks noise, rate and steps

    def as_mechanism(self) -> AnyMechanism:
        """What it costs: Gaussian steps, or a pure epsilon of 1 / noise_multiplier for each of the steps."""
        return _mechanism(self.mechanism, self.noise_multiplier, self.sample_rate, self.steps)


@lru_cache(maxsize=4096)  # a ledger's rows name the same few again and again
def _mechanism(kind: str, noise_multiplier: float, sample_rate: float, steps: int) -> AnyMechanism:
    if kind == LAPLACE:
        if sample_rate != 1:
            raise ValueError(f"sample_rate={sample_rate}: a count is over all examples, at rate 1")
        if not noise_multiplier > 0:
            raise ValueError(f"noise_multiplier={noise_multiplier}: a count without noise has no epsilon")
        return PureDP(steps / noise_multiplier)
    return Mechanism(noise_multiplier, sample_rate, steps)


@cache
def _kinds() -> tuple[tuple[str, type], ...]:
    """Name and type of each field."""
    return tuple((field.name, cast(type, field.type)) for field in fields(Spend))
