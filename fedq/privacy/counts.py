"""Noisy counts of right and wrong answers: exact discrete Laplace noise, one spend, nothing else of the examples.
Knows counts and a ledger; not models, messages or how examples were counted.

One example more adds 1 to one of the two counts, so their L1 sensitivity is 1 together, and Laplace noise of scale
1/epsilon on both is (epsilon, 0)-DP; how many there are is protected too. Noise and counts are whole numbers, and the
sampler of Canonne, Kamath and Steinke 2020 (arXiv:2004.00010, algorithms 1 and 2) is exact: it tosses coins of rational
odds only, so there are no low bits to attack.
"""

import math
from fractions import Fraction

from fedq.privacy.admission import budget_guard
from fedq.privacy.dpsgd import NOISE, DPEvidence
from fedq.privacy.ledger import Ledger
from fedq.privacy.noise import RandomSource
from fedq.privacy.plan import DPPlan, SpendContext


def noisy_counts(
    right: int,
    wrong: int,
    plan: DPPlan,
    *,
    random: RandomSource,
    ledger: Ledger,
    context: SpendContext,
    paid: int | None = None,
) -> tuple[int, int, DPEvidence]:
    """The two counts with noise, which may be negative, and the evidence; the spend is on disk before either leaves.

    `paid`: the row of the ledger that pays for them, if it is written already.
    """
    spend = plan.evaluation_spend(context, noise_source=random.source)
    assert plan.evaluation_epsilon is not None
    row_id = ledger.spend(spend, guard=budget_guard(plan, counts=True)) if paid is None else paid
    noised = [count + discrete_laplace(plan.evaluation_epsilon, random) for count in (right, wrong)]
    evidence = DPEvidence(
        noise_source=random.source,
        steps_noised=spend.steps,
        clip_norm=spend.clip_norm,
        noise_multiplier=spend.noise_multiplier,
        sample_rate=spend.sample_rate,
        spend_row_id=row_id,
        noised_scalars=len(noised),
        mechanism=spend.mechanism,
        secret_bits={NOISE: random.secret_bits},
    )
    return noised[0], noised[1], evidence


def standard_error(right: int, wrong: int, clients: int, epsilon: float) -> float:
    """Of the accuracy that summed noisy counts give: from the noise alone, to first order; inf where nothing is left.

    Each count has variance 2 / epsilon^2 for each client, and accuracy is right / (right + wrong).
    """
    total = right + wrong
    if total <= 0:
        return math.inf
    share = min(1.0, max(0.0, right / total))
    return math.sqrt(2 * clients * ((1 - share) ** 2 + share**2)) / (epsilon * total)


def discrete_laplace(epsilon: float, random: RandomSource) -> int:
    """A whole number k with probability proportional to exp(-epsilon |k|), exactly."""
    s, t = Fraction(epsilon).as_integer_ratio()
    while True:
        part = random.below(t)
        if not _exp_coin(Fraction(part, t), random):
            continue
        whole = 0
        while _exp_coin(Fraction(1), random):
            whole += 1
        size = (part + t * whole) // s
        negative = random.below(2)
        if not (negative and size == 0):  # 0 has no second sign
            return -size if negative else size


def _exp_coin(gamma: Fraction, random: RandomSource) -> bool:
    """True with probability exp(-gamma), 0 <= gamma <= 1, exactly."""
    tosses = 1
    while random.below(gamma.denominator * tosses) < gamma.numerator:
        tosses += 1
    return tosses % 2 == 1
