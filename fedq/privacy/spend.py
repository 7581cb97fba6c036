"""One spend as the ledger holds it: a mechanism with all its numbers, and what it was for.
Knows numbers and labels; not files, hashes, budgets or data.
"""

import math
from dataclasses import dataclass, fields

from fedq.privacy.accounting import Mechanism


@dataclass(frozen=True)
class Spend:
    """What is about to be spent: enough to recompute its epsilon, and to say what it was for."""

    noise_multiplier: float  # noise std / clip_norm
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
    mechanism: str = "gaussian"  # or "discrete-gaussian": noise on each step's sum, from `noise_source`

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # Stored as plain Python numbers: what comes back from SQLite must hash as it did going in.
            if field.type is float and isinstance(value, int | float):
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not field.type:
                kind = getattr(field.type, "__name__", field.type)
                raise ValueError(f"{field.name}={value!r}: must be of type {kind}")
        if self.noise_source not in ("os", "seeded"):
            raise ValueError(f"noise_source={self.noise_source!r}: must be os or seeded")
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip_norm={self.clip_norm}: must be a finite number above 0")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta}: must lie between 0 and 1")
        self.as_mechanism()  # checks noise, rate and steps

    def as_mechanism(self) -> Mechanism:
        return Mechanism(self.noise_multiplier, self.sample_rate, self.steps)
