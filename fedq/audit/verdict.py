"""The p-value and the bounds from the scores of canaries. Knows scores and plans; not how canaries are made."""

from typing import Literal

import numpy as np

from fedq.audit.bounds import Guesses, GuessesByShare, Observed, mechanism_bound
from fedq.audit.curves import curve_of, epsilon_of
from fedq.audit.findings import Bounds, Check
from fedq.privacy import DPPlan, Mechanism

CONFIDENCE = 0.95
SHARES = (0.1, 1.0)  # shares of the coins that are guessed: the surest, which gave the best bounds in trials, and all
FEWEST_GUESSES = 100

Box = Literal["white-box", "black-box"]
CLAIMS: dict[Box, str] = {
    "white-box": "the steps of one run say no more of its canaries than its plan's curve allows",
    "black-box": "the model of one run says no more of its canaries than its plan's curve allows",
}


def guess_by_evidence(evidence: np.ndarray, included: np.ndarray) -> GuessesByShare:
    """Guesses for the canaries with the strongest evidence, at each share: members above 0, others below.

    `evidence`, `included` (canaries,): the log-likelihood ratio of each canary, and its coin. Under sampling the
    strongest evidence is for members: a drawn canary is visible, while one that is not drawn gives little evidence.
    """
    surest = np.argsort(-np.abs(evidence), kind="stable")
    right = ((evidence > 0) == included)[surest]
    canaries = len(evidence)
    counts = [min(canaries, max(FEWEST_GUESSES, round(share * canaries))) for share in SHARES]
    return GuessesByShare(tuple(Guesses(canaries, count, int(right[:count].sum())) for count in counts))


def guess_by_order(scores: np.ndarray, included: np.ndarray) -> GuessesByShare:
    """The same for scores without a scale: the rank of each canary, relative to the middle, is its evidence.

    `scores`, `included` (canaries,): the score of each canary, and its coin.
    """
    places = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    return guess_by_evidence(places - (len(scores) - 1) / 2, included)


def claimed(plan: DPPlan, rounds: int) -> Mechanism:
    """The mechanism of a client's plan over `rounds` rounds."""
    return Mechanism(plan.noise_multiplier, plan.sample_rate, plan.steps * rounds)


def refuted_epsilon(seen: Observed, plan: DPPlan, rounds: int) -> float:
    """The largest refuted epsilon among mechanisms that differ from the plan only in noise."""
    claim = claimed(plan, rounds)
    return mechanism_bound(seen, claim, delta=plan.delta, confidence=CONFIDENCE, accountant=plan.accountant)


def judged(seen: GuessesByShare, plan: DPPlan, *, rounds: int, box: Box) -> tuple[Check, Bounds]:
    """(check of the plan's claim, bounds) from the guesses of one run."""
    claim = claimed(plan, rounds)
    p = seen.curve_p_value(curve_of(claim, accountant=plan.accountant))
    seen_text = ", ".join(f"{part.correct:,} of {part.guesses:,} guesses right" for part in seen.parts)
    bounds = Bounds(
        box=box,
        claimed_epsilon=epsilon_of(claim, plan.delta, accountant=plan.accountant),
        delta=plan.delta,
        confidence=CONFIDENCE,
        canaries=seen.parts[0].canaries,
        guesses=tuple((part.guesses, part.correct) for part in seen.parts),
        one_run=seen.epsilon_bound(delta=plan.delta, confidence=CONFIDENCE),
        one_run_curve=refuted_epsilon(seen, plan, rounds),
    )
    return Check(f"{box} canaries", CLAIMS[box], p, seen_text), bounds
