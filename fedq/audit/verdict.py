"""From what a run tells of each canary to a p-value and bounds. Knows scores and plans; not how canaries were made."""

from typing import Literal

import numpy as np

from fedq.audit.bounds import Guesses, Seen, Several, mechanism_bound
from fedq.audit.curves import curve_of, epsilon_of
from fedq.audit.findings import Bounds, Check
from fedq.privacy import DPPlan, Mechanism

CONFIDENCE = 0.95
SHARES = (0.1, 1.0)  # of the coins that are guessed: the surest, which of the shares tried bound best, and all
FEWEST_GUESSES = 100

Box = Literal["white-box", "black-box"]
CLAIMS: dict[Box, str] = {
    "white-box": "the steps of one run say no more of its canaries than its plan's curve allows",
    "black-box": "the model of one run says no more of its canaries than its plan's curve allows",
}


def guess(scores: np.ndarray, included: np.ndarray) -> Several:
    """At each share the highest scores are taken for members, and as many of the lowest for the others.

    `scores`, `included` (canaries,): what the run tells of each, and its coin.
    """
    order = np.argsort(scores, kind="stable")
    parts = []
    for share in SHARES:
        half = max(1, round(min(len(scores), max(share * len(scores), FEWEST_GUESSES)) / 2))
        half = min(half, len(scores) // 2)
        correct = int((~included[order[:half]]).sum() + included[order[-half:]].sum())
        parts.append(Guesses(len(scores), 2 * half, correct))
    return Several(tuple(parts))


def claimed(plan: DPPlan, rounds: int) -> Mechanism:
    """All that a client's plan lets it do in `rounds` rounds."""
    return Mechanism(plan.noise_multiplier, plan.sample_rate, plan.steps * rounds)


def refuted_epsilon(seen: Seen, plan: DPPlan, rounds: int) -> float:
    """The largest epsilon that was refuted, among mechanisms that differ from the plan's in noise."""
    whole = claimed(plan, rounds)
    return mechanism_bound(seen, whole, delta=plan.delta, confidence=CONFIDENCE, accountant=plan.accountant)


def judged(seen: Several, plan: DPPlan, *, rounds: int, box: Box) -> tuple[Check, Bounds]:
    """The plan's claim beside what was guessed of one run."""
    whole = claimed(plan, rounds)
    p = seen.curve_p_value(curve_of(whole, accountant=plan.accountant))
    told = ", ".join(f"{part.correct:,} of {part.guesses:,} guesses right" for part in seen.parts)
    bounds = Bounds(
        box=box,
        claimed_epsilon=epsilon_of(whole, plan.delta, accountant=plan.accountant),
        delta=plan.delta,
        confidence=CONFIDENCE,
        canaries=seen.parts[0].canaries,
        guesses=tuple((part.guesses, part.correct) for part in seen.parts),
        one_run=seen.epsilon_bound(delta=plan.delta, confidence=CONFIDENCE),
        one_run_curve=refuted_epsilon(seen, plan, rounds),
    )
    return Check(f"{box} canaries", CLAIMS[box], p, told), bounds
