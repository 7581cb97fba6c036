"""The results of an audit: checks with p-values, bounds, and the threshold of a finding. Knows numbers alone."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

LEVEL = 0.01  # probability that an audit flags a right mechanism, over all its checks


@dataclass(frozen=True)
class Check:
    """One check. `p_value`: probability of such an observation, or a stronger one, if the claim holds.

    It is exactly 0 for an observation that the claim excludes, and 1 if nothing contradicts the claim.
    """

    name: str
    claim: str  # the null hypothesis, as a sentence
    p_value: float
    seen: str  # the observation, in words
    chance: bool = True  # whether the check can fail by chance; if not, a p-value below 1 is certain


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on epsilon and the claimed epsilon, at the same delta; each bound has the stated confidence."""

    box: str  # white-box (each noised step is seen) or black-box (only the final model is seen)
    claimed_epsilon: float
    delta: float
    confidence: float
    canaries: int
    guesses: tuple[tuple[int, int], ...]  # (guesses, correct guesses); the bounds are the best of these
    one_run: float  # for any mechanism (Steinke et al. 2023)
    one_run_curve: float  # among mechanisms that differ only in noise (Mahloujifar et al. 2024)
    repeats: int = 0
    repeated: float | None = None  # from `repeats` independent runs, among the same mechanisms (Nasr et al. 2023)


@dataclass(frozen=True)
class Audit:
    """All results of one audit; `left_out`: checks that were not made, with the reason."""

    subject: str
    checks: Sequence[Check]
    bounds: Sequence[Bounds] = ()
    membership: Sequence[Any] = ()
    left_out: Sequence[str] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """A smaller p-value is a finding: `LEVEL` over the number of checks that can fail by chance (Bonferroni)."""
        return LEVEL / max(1, sum(check.chance for check in self.checks))

    @property
    def findings(self) -> list[Check]:
        """The checks whose p-value is below the threshold."""
        return [check for check in self.checks if check.p_value < self.threshold]

    def to_json(self) -> dict[str, Any]:
        """The audit as JSON values."""
        found = {check.name for check in self.findings}
        return {
            "subject": self.subject,
            "flagged": bool(found),
            "level": LEVEL,
            "checks": [{**asdict(check), "finding": check.name in found} for check in self.checks],
            "bounds": [asdict(bounds) for bounds in self.bounds],
            "membership": [asdict(score) for score in self.membership],
            "left_out": list(self.left_out),
            **self.about,
        }
