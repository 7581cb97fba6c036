"""Noisy counts of right and wrong answers: exact discrete Laplace noise, one spend for both counts.
Knows counts and a ledger; not models, messages or the evaluation.

One more example adds 1 to one of the two counts, so the L1 sensitivity of both together is 1, and Laplace noise of
scale 1/epsilon on each is (epsilon, 0)-DP. The number of examples is protected too. Noise and counts are integers. The
sampler of Canonne, Kamath and Steinke 2020 (arXiv:2004.00010, algorithms 1 and 2) is exact: it tosses only coins with
rational probabilities, so attacks on low bits of floats do not apply.
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
    """The two counts with noise, which may be negative, and the evidence. The spend is on disk before they return.

    `paid`: the ledger's row of this spend, if it is written already. Raises Declined where the budget is spent, and
    LedgerError.
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
    """Standard error of the accuracy from summed noisy counts, due to the noise alone, to first order.

    inf where the noisy total is not above 0.

    Each count has variance 2 / epsilon^2 for each client, and accuracy is right / (right + wrong).
    """
    total = right + wrong
    if total <= 0:
        return math.inf
    share = min(1.0, max(0.0, right / total))
    return math.sqrt(2 * clients * ((1 - share) ** 2 + share**2)) / (epsilon * total)


def discrete_laplace(epsilon: float, random: RandomSource) -> int:
    """An integer k with probability exactly proportional to exp(-epsilon |k|)."""
    s, t = Fraction(epsilon).as_integer_ratio()
    while True:
        part = random.below(t)
        if not _exp_coin(Fraction(part, t), random):
            continue
        quotient = 0
        while _exp_coin(Fraction(1), random):
            quotient += 1
        size = (part + t * quotient) // s
        negative = random.below(2)
        if not (negative and size == 0):  # 0 has one sign only
            return -size if negative else size


def _exp_coin(gamma: Fraction, random: RandomSource) -> bool:
    """True with probability exp(-gamma), 0 <= gamma <= 1, exactly."""
    tosses = 1
    while random.below(gamma.denominator * tosses) < gamma.numerator:
        tosses += 1
    return tosses % 2 == 1
