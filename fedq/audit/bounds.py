"""P-values and lower bounds on epsilon from guesses about canaries. Knows counts and curves.

A fair coin of the auditor decides for each of `canaries` examples whether it is in the data. The auditor sees the
messages, guesses `guesses` of the coins and abstains from the others; `correct` of the guesses are right.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from fedq.audit.curves import Curve, GaussianCurve, curve_of, epsilon_of
from fedq.audit.tails import binomial_at_least, binomial_weights, clopper_pearson
from fedq.privacy import Accountant, Mechanism, calibrate

LEAST_P = 1e-12  # smallest p-value that is computed
_LEAST_EPSILON, _LARGEST_EPSILON, _LARGEST_MU = 0.01, 100.0, 12.0
# Multiples of a first noise multiplier that are tried, until one is refuted.
_STEPS_UP = (1.0, 1.04, 1.08, 1.15, 1.3, 1.6, 2.0)


@dataclass(frozen=True)
class Guesses:
    """Numbers of canaries (coins), of guesses, and of correct guesses."""

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guesses <= self.canaries or self.guesses < 1:
            raise ValueError(
                f"correct={self.correct}, guesses={self.guesses}, canaries={self.canaries}: each must be at most the "
                "next, and guesses at least 1"
            )

    def refutes(self, curve: Curve, level: float) -> bool:
        """Whether this many correct guesses have a probability below `level` under the curve.

        Mahloujifar, Melis, Chaudhuri 2024 (arXiv:2410.22235), algorithm 3, with abstention. Let `right` be the
        probability that a random canary is guessed correctly and at least i guesses are correct; `wrong` is the same
        for a wrong guess. Flipping one coin relates `wrong` at i to `right` at i + 1 by the curve. The recursion
        follows the largest tail that these relations allow, from i = correct down to 0. There the two must add up to
        the share of coins that are guessed.
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
    """Errors over independent runs, `out` without one canary and `included` with it, at a threshold fixed before."""

    out: int
    wrongly_in: int  # runs without the canary that were taken for runs with it
    included: int
    wrongly_out: int  # runs with the canary that were taken for runs without it

    def refutes(self, curve: Curve, level: float) -> bool:
        """Whether such error rates have a probability of at most `level` for every mechanism under the curve.

        Each rate gets a Clopper-Pearson bound at half of `level` (Nasr et al. 2023, arXiv:2302.07956).
        """
        confidence = 1 - level / 2
        false_positive = clopper_pearson(self.wrongly_in, trials=self.out, confidence=confidence)[1]
        false_negative = clopper_pearson(self.wrongly_out, trials=self.included, confidence=confidence)[1]
        return false_positive < curve.least(1 - false_negative)


class Observed(Protocol):
    """The observations of an audit: guesses or errors."""

    def refutes(self, curve: Curve, level: float) -> bool: ...


@dataclass(frozen=True)
class GuessesByShare:
    """Guesses of one run at several shares of its canaries, fixed before; the shares divide the risk equally.

    The few surest guesses give the largest bounds for a private mechanism. All guesses together detect a mechanism that
    reveals nearly everything.
    """

    parts: tuple[Guesses, ...]

    def refutes(self, curve: Curve, level: float) -> bool:
        """Whether the guesses at one of the shares refute the curve."""
        return any(part.refutes(curve, level / len(self.parts)) for part in self.parts)

    def curve_p_value(self, curve: Curve) -> float:
        return min(1.0, len(self.parts) * min(curve_p_value(part, curve) for part in self.parts))

    def epsilon_bound(self, *, delta: float, confidence: float) -> float:
        each = 1 - (1 - confidence) / len(self.parts)
        return max(epsilon_bound(part, delta=delta, confidence=each) for part in self.parts)


def p_value(seen: Guesses, *, epsilon: float, delta: float) -> float:
    """Probability of at least this many correct guesses, if one run is (epsilon, delta)-DP.

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
    """Largest epsilon that one run refutes at `confidence`, for any mechanism (Steinke et al. 2023)."""
    return _largest(lambda epsilon: p_value(seen, epsilon=epsilon, delta=delta) < 1 - confidence, _LARGEST_EPSILON)


def curve_p_value(seen: Guesses, curve: Curve) -> float:
    """Upper bound on the probability of this many correct guesses under the curve, at least `LEAST_P`."""
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
    seen: Observed, claimed: Mechanism, *, delta: float, confidence: float, accountant: Accountant = "prv"
) -> float:
    """Largest refuted epsilon at `delta` among mechanisms that differ from the claimed one only in noise.

    The bound depends on this family of mechanisms: a whole curve is refuted, not one point of it.
    """
    mu = _largest(lambda mu: seen.refutes(GaussianCurve(mu), 1 - confidence), _LARGEST_MU)
    if mu < 1e-3:
        return 0.0
    if claimed.sample_rate == 1:
        return GaussianCurve(mu).epsilon(delta)
    # A sampled mechanism's curve is close to a Gaussian one, which gives a first noise multiplier for the accountant.
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
    """The largest value in [0, most] at which `holds` is true; it must be true up to some value and false beyond."""
    low, high = 0.0, most
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
