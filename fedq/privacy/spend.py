"""One spend as the ledger holds it: a mechanism with all its numbers, and labels of its use.
Knows numbers and labels; not files, hashes, budgets or data.
"""

import math
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import cast

from fedq.privacy.accounting import AnyMechanism, Mechanism, PureDP

# The mechanisms of a spend; a test compares each with its cost.
GAUSSIAN, DISCRETE, LAPLACE = "gaussian", "discrete-gaussian", "discrete-laplace"
MECHANISMS = (GAUSSIAN, DISCRETE, LAPLACE)


@dataclass(frozen=True)
class Spend:
    """One privacy event: enough to recompute its epsilon, and the run, round and data that it belongs to.

    Raises ValueError for a value of the wrong type, or one that cannot be accounted.
    """

    noise_multiplier: float  # noise std (Laplace: scale) / clip_norm
    clip_norm: float
    sample_rate: float
    steps: int
    delta: float  # at which the run reports epsilon; the mechanism itself has no delta
    nominal_examples: int  # public; the noised sum is divided by sample_rate * nominal_examples
    noise_source: str  # "os" or "seeded"
    data: str
    run: str
    round: int
    attempt: int = 0
    bundle: str = ""  # digest of the app's code
    unit: str = "example"
    adjacency: str = "add-or-remove-one"
    mechanism: str = GAUSSIAN  # one of MECHANISMS; a Gaussian is Poisson-subsampled at `sample_rate`, `steps` times

    def __post_init__(self) -> None:
        for name, kind in _kinds():  # must be fast: every admission checks a ledger of perhaps 10,000 rows
            value = getattr(self, name)
            if type(value) is kind:
                continue
            if kind is not float or not isinstance(value, int | float):
                raise ValueError(f"{name}={value!r}: must be of type {kind.__name__}")
            # Stored as plain Python numbers: a value must have the same hash before and after SQLite.
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
        """The mechanism for an accountant: Gaussian steps, or a pure epsilon of 1 / noise_multiplier a step."""
        return _mechanism(self.mechanism, self.noise_multiplier, self.sample_rate, self.steps)


@lru_cache(maxsize=4096)  # the rows of a ledger repeat few mechanisms
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
    """(name, type) of each field."""
    return tuple((field.name, cast(type, field.type)) for field in fields(Spend))
