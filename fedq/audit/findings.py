"""What an audit found: checks with p-values, and when one of them counts. Knows numbers; not how they came."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

LEVEL = 0.01  # the chance that an audit flags a right mechanism, all its checks together


@dataclass(frozen=True)
class Check:
    """One question, and its answer. `p_value`: how probable so much, or more, is where the claim holds.

    Exactly 0 where what was seen is impossible under the claim, 1 where nothing speaks against it.
    """

    name: str
    claim: str  # the null hypothesis, as a sentence
    p_value: float
    seen: str
    chance: bool = True  # whether chance alone could fail it; else any p-value below 1 is a certainty


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on epsilon beside the claimed one, at the same delta, each at the stated confidence."""

    box: str  # what was seen of the run: white-box (each noised step) or black-box (the model at its end)
    claimed_epsilon: float
    delta: float
    confidence: float
    canaries: int
    guesses: tuple[tuple[int, int], ...]  # how many, and how many of them right; the bounds are the best of these
    one_run: float  # Steinke et al. 2023, of any mechanism
    one_run_curve: float  # Mahloujifar et al. 2024, among mechanisms that differ in noise alone
    repeats: int = 0
    repeated: float | None = None  # from so many independent runs (Nasr et al. 2023), among the same mechanisms


@dataclass(frozen=True)
class Audit:
    """All checks of one audit. What was not looked at stands in `left_out`, with the reason."""

    subject: str
    checks: Sequence[Check]
    bounds: Sequence[Bounds] = ()
    membership: Sequence[Any] = ()
    left_out: Sequence[str] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """Below it a p-value is a finding: `LEVEL` shared by all checks that chance can fail (Bonferroni)."""
        return LEVEL / max(1, sum(check.chance for check in self.checks))

    @property
    def findings(self) -> list[Check]:
        return [check for check in self.checks if check.p_value < self.threshold]

    def to_json(self) -> dict[str, Any]:
        """The same as one object."""
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
