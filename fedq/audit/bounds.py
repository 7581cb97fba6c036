"""What guesses about canaries say of a claim: p-values, and lower bounds on epsilon. Knows counts and curves.

Each of `canaries` examples is in the data or not, by a fair coin of the auditor's. The auditor sees what leaves,
guesses `guesses` of the coins, says nothing of the others, and `correct` of the guesses are right.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from fedq.audit.curves import Curve, GaussianCurve, curve_of, epsilon_of
from fedq.audit.tails import binomial_at_least, binomial_weights, clopper_pearson
from fedq.privacy import Accountant, Mechanism, calibrate

LEAST_P = 1e-12  # p-values below are not told apart
_LEAST_EPSILON, _LARGEST_EPSILON, _LARGEST_MU = 0.01, 100.0, 12.0
# How far above a first guess the noise is tried that guesses refute.
_STEPS_UP = (1.0, 1.04, 1.08, 1.15, 1.3, 1.6, 2.0)


@dataclass(frozen=True)
class Guesses:
    """How many coins were thrown, how many guessed, how many of those rightly."""

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guesses <= self.canaries or self.guesses < 1:
            raise ValueError(
                f"correct={self.correct}, guesses={self.guesses}, canaries={self.canaries}: must not grow in this "
                "order, and one guess is the least"
            )

    def refutes(self, curve: Curve, level: float) -> bool:
        """Whether so many correct guesses have a probability below `level` under the curve.

        Mahloujifar, Melis, Chaudhuri 2024 (arXiv:2410.22235), algorithm 3, with abstention. Let `right` be the
        probability that a canary drawn at random is guessed rightly and at least i guesses are right, `wrong` the same
        for wrongly. Turning one coin links `wrong` at i to `right` at i + 1 by the curve. The recursion follows the
        largest tail that these links allow from i = correct down to 0, where the two must add up to the share of coins
        that are guessed.
        """
        share = self.guesses / self.canaries
        right = level * self.correct / self.canaries
        wrong = level * (self.guesses - self.correct) / self.canaries
        for i in range(self.correct - 1, -1, -1):
            grown = max(wrong, curve.least(right))
            right += i / (self.guesses - i) * (grown - wrong)
            wrong = grown
            if right + wrong > share:
                return True
        return False


@dataclass(frozen=True)
class Errors:
    """Independent runs, `out` without one canary and `included` with it, told apart by a threshold fixed before."""

    out: int
    wrongly_in: int  # of them, taken for runs with the canary
    included: int
    wrongly_out: int

    def refutes(self, curve: Curve, level: float) -> bool:
        """Whether no mechanism under the curve has such error rates but with probability `level` at most.

        Each rate gets a Clopper-Pearson bound at half the risk (Nasr et al. 2023, arXiv:2302.07956).
        """
        confidence = 1 - level / 2
        false_positive = clopper_pearson(self.wrongly_in, trials=self.out, confidence=confidence)[1]
        false_negative = clopper_pearson(self.wrongly_out, trials=self.included, confidence=confidence)[1]
        return false_positive < curve.least(1 - false_negative)


class Seen(Protocol):
    """What was counted, of whatever kind."""

    def refutes(self, curve: Curve, level: float) -> bool: ...


@dataclass(frozen=True)
class Several:
    """Guesses of one run at several shares of its canaries, fixed before: each at its part of the risk.

    The surest few give the largest bounds of a mechanism that holds; all of them show one that tells nearly everything.
    """

    parts: tuple[Guesses, ...]

    def refutes(self, curve: Curve, level: float) -> bool:
        """Whether one of them refutes the curve."""
        return any(part.refutes(curve, level / len(self.parts)) for part in self.parts)

    def curve_p_value(self, curve: Curve) -> float:
        return min(1.0, len(self.parts) * min(curve_p_value(part, curve) for part in self.parts))

    def epsilon_bound(self, *, delta: float, confidence: float) -> float:
        each = 1 - (1 - confidence) / len(self.parts)
        return max(epsilon_bound(part, delta=delta, confidence=each) for part in self.parts)


def p_value(seen: Guesses, *, epsilon: float, delta: float) -> float:
    """Probability of so many correct guesses, or more, if one run was (epsilon, delta)-DP.

    Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846), corollary 5.4.
    """
    accuracy = 1 / (1 + math.exp(-epsilon))
    p = binomial_at_least(seen.correct, trials=seen.guesses, probability=accuracy)
    if delta > 0:
        weights = binomial_weights(trials=seen.guesses, probability=accuracy)
        below, worst = 0.0, 0.0
        for i in range(1, seen.correct + 1):
            below += float(weights[seen.correct - i])
            worst = max(worst, below / i)
        p += worst * delta * 2 * seen.canaries
    return min(1.0, p)


def epsilon_bound(seen: Guesses, *, delta: float, confidence: float) -> float:
    """Largest epsilon that one run refutes at `confidence`, whatever the mechanism (Steinke et al. 2023)."""
    return _largest(lambda epsilon: p_value(seen, epsilon=epsilon, delta=delta) < 1 - confidence, _LARGEST_EPSILON)


def curve_p_value(seen: Guesses, curve: Curve) -> float:
    """Upper bound on the probability of so many correct guesses under the curve; `LEAST_P` stands for all below."""
    if not seen.refutes(curve, 1 - 1e-9):
        return 1.0
    if seen.refutes(curve, LEAST_P):
        return LEAST_P
    low, high = math.log(LEAST_P), 0.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if seen.refutes(curve, math.exp(middle)) else (middle, high)
    return math.exp(high)


def mechanism_bound(
    seen: Seen, claimed: Mechanism, *, delta: float, confidence: float, accountant: Accountant = "prv"
) -> float:
    """Largest epsilon at `delta` that was refuted, among mechanisms that differ from the claimed one in noise.

    Which mechanisms are looked at decides what a bound means: a whole curve is refuted, not one point of it.
    """
    mu = _largest(lambda mu: seen.refutes(GaussianCurve(mu), 1 - confidence), _LARGEST_MU)
    if mu < 1e-3:
        return 0.0
    if claimed.sample_rate == 1:
        return GaussianCurve(mu).epsilon(delta)
    # A sampled mechanism's curve is near a Gaussian one: that tells about which noise to ask the accountant.
    noise = calibrate(
        target_epsilon=max(GaussianCurve(mu).epsilon(delta), _LEAST_EPSILON),
        delta=delta,
        sample_rate=claimed.sample_rate,
        steps=claimed.steps,
        accountant=accountant,
    )
    for step in _STEPS_UP:
        tried = replace(claimed, noise_multiplier=noise * step)
        if seen.refutes(curve_of(tried, accountant=accountant), 1 - confidence):
            return epsilon_of(tried, delta, accountant=accountant)
    return 0.0


def _largest(holds: Callable[[float], bool], most: float) -> float:
    """The largest value in 0 ... most at which `holds`, which holds up to some value and not beyond; 0 if nowhere."""
    low, high = 0.0, most
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
