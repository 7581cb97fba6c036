"""The DP plan of a round and the labels of a spend: public numbers only.
Knows mechanisms; not tensors, ledgers or anything that depends on data.
"""

import math
from dataclasses import dataclass, replace

from fedq.core.choices import ACCOUNTANTS
from fedq.privacy.accounting import Accountant, Mechanism, PureDP
from fedq.privacy.mechanisms import NOISES
from fedq.privacy.spend import LAPLACE, Spend


@dataclass(frozen=True)
class DPPlan:
    """The DP-SGD plan of one round. It does not depend on the client's data.

    `nominal_examples` is a public number in place of the true number of examples. It sets the divisor, and so the
    length of a step. The guarantee does not depend on it. Raises ValueError for a value out of its range.
    """

    noise_multiplier: float  # noise std / clip_norm
    clip_norm: float  # largest L2 norm of one example's gradient
    sample_rate: float  # Poisson probability of each example to be in a batch
    steps: int  # noised steps in this round
    nominal_examples: int
    target_epsilon: float  # budget for all spends of this data; inf: no limit
    delta: float
    accountant: Accountant = "prv"
    noise: str = "gaussian"  # a name in NOISES
    evaluation_epsilon: float | None = None  # cost of the pair of noisy counts at the end; None: no evaluation

    def __post_init__(self) -> None:
        Mechanism(self.noise_multiplier, self.sample_rate, self.steps)  # checks these three
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: must be 1 or more")
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip_norm={self.clip_norm}: must be a finite number above 0, e.g. 1")
        if self.nominal_examples < 1:
            raise ValueError(
                f"nominal_examples={self.nominal_examples}: must be 1 or more; use a shard's expected size"
            )
        if not self.target_epsilon > 0:
            raise ValueError(f"target_epsilon={self.target_epsilon}: must be above 0, e.g. 8")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta}: must lie between 0 and 1, e.g. 1e-5")
        if self.accountant not in ACCOUNTANTS:
            raise ValueError(f"accountant={self.accountant!r}: must be one of {', '.join(ACCOUNTANTS)}")
        if self.noise not in NOISES:
            raise ValueError(f"noise={self.noise!r}: must be one of {', '.join(NOISES)}")
        least, largest = NOISES[self.noise].multiplier_range
        if not least <= self.noise_multiplier <= largest:
            raise ValueError(
                f"noise_multiplier={self.noise_multiplier}: the grid of noise={self.noise} holds "
                f"2^{math.log2(least):g} to 2^{math.log2(largest):g}; use noise=gaussian"
            )

    @property
    def mechanism(self) -> Mechanism:
        """The mechanism of one round, for an accountant."""
        return Mechanism(self.noise_multiplier, self.sample_rate, self.steps)

    @property
    def evaluation(self) -> PureDP | None:
        """The cost of an evaluation by noisy counts, as the ledger will compute it; None without one."""
        return None if self.evaluation_epsilon is None else PureDP(1 / self.evaluation_scale)

    @property
    def evaluation_scale(self) -> float:
        """Scale of the Laplace noise on a count, rounded down, so that the ledger's epsilon is never too small."""
        if self.evaluation_epsilon is None:
            raise ValueError("evaluation_epsilon=None: this plan has no evaluation; use evaluate=dp")
        return math.nextafter(1 / self.evaluation_epsilon, 0)

    def spend(self, context: "SpendContext", *, noise_source: str) -> Spend:
        """The spend of one participation."""
        return Spend(
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sample_rate=self.sample_rate,
            steps=self.steps,
            delta=self.delta,
            nominal_examples=self.nominal_examples,
            noise_source=noise_source,
            data=context.data,
            run=context.run,
            round=context.round,
            attempt=context.attempt,
            bundle=context.bundle,
            mechanism=self.mechanism_name,
        )

    def evaluation_spend(self, context: "SpendContext", *, noise_source: str) -> Spend:
        """The spend of one pair of noisy counts; ValueError where the plan has no evaluation."""
        return replace(
            self.spend(context, noise_source=noise_source),
            mechanism=LAPLACE,
            noise_multiplier=self.evaluation_scale,
            clip_norm=1.0,
            sample_rate=1.0,
            steps=1,
        )

    @property
    def divisor(self) -> float:
        """Expected batch size of a shard with `nominal_examples`; the noised sum is divided by it."""
        return self.sample_rate * self.nominal_examples

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each coordinate of a summed gradient, before the division."""
        return self.noise_multiplier * self.clip_norm

    @property
    def mechanism_name(self) -> str:
        """The name of the mechanism in spends."""
        return NOISES[self.noise].spend_name


@dataclass(frozen=True)
class SpendContext:
    """Labels of a spend in the ledger. They do not change its cost."""

    data: str
    run: str
    round: int
    attempt: int = 0
    bundle: str = ""  # digest of the app's code
