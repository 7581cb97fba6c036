"""From what a run tells of each canary to a p-value and bounds. Knows scores and plans; not how canaries were made."""

from typing import Literal

import numpy as np

from fedq.audit.bounds import Guesses, Seen, curve_p_value, epsilon_bound, mechanism_bound
from fedq.audit.curves import curve_of, epsilon_of
from fedq.audit.findings import Bounds, Check
from fedq.privacy import DPPlan, Mechanism

CONFIDENCE = 0.95
GUESSED = 0.1  # share of the coins that are guessed: the surest; of the shares tried it gives the largest bounds
FEWEST_GUESSES = 100

Box = Literal["white-box", "black-box"]
CLAIMS: dict[Box, str] = {
    "white-box": "the steps of one run say no more of its canaries than its plan's curve allows",
    "black-box": "the model of one run says no more of its canaries than its plan's curve allows",
}


def guess(scores: np.ndarray, included: np.ndarray) -> Guesses:
    """The highest scores are taken for members, the lowest for the others, as many of each; the rest is left open.

    `scores`, `included` (canaries,): what the run tells of each, and its coin.
    """
    canaries = len(scores)
    half = max(1, round(min(canaries, max(GUESSED * canaries, FEWEST_GUESSES)) / 2))
    order = np.argsort(scores, kind="stable")
    out, within = order[:half], order[-half:]
    return Guesses(canaries, 2 * half, int((~included[out]).sum() + included[within].sum()))


def claimed(plan: DPPlan, rounds: int) -> Mechanism:
    """All that a client's plan lets it do in `rounds` rounds."""
    return Mechanism(plan.noise_multiplier, plan.sample_rate, plan.steps * rounds)


def refuted_epsilon(seen: Seen, plan: DPPlan, rounds: int) -> float:
    """The largest epsilon that was refuted, among mechanisms that differ from the plan's in noise."""
    whole = claimed(plan, rounds)
    return mechanism_bound(seen, whole, delta=plan.delta, confidence=CONFIDENCE, accountant=plan.accountant)


def judged(seen: Guesses, plan: DPPlan, *, rounds: int, box: Box) -> tuple[Check, Bounds]:
    """The plan's claim beside what was guessed of one run."""
    whole = claimed(plan, rounds)
    p = curve_p_value(seen, curve_of(whole, accountant=plan.accountant))
    told = f"{seen.correct} of {seen.guesses} guesses right, of {seen.canaries:,} canaries"
    bounds = Bounds(
        box=box,
        claimed_epsilon=epsilon_of(whole, plan.delta, accountant=plan.accountant),
        delta=plan.delta,
        confidence=CONFIDENCE,
        canaries=seen.canaries,
        guesses=seen.guesses,
        correct=seen.correct,
        one_run=epsilon_bound(seen, delta=plan.delta, confidence=CONFIDENCE),
        one_run_curve=refuted_epsilon(seen, plan, rounds),
    )
    return Check(f"{box} canaries", CLAIMS[box], p, told), bounds
