"""Runs mutations and counts what they gave. Knows mutations and the oracle; prints nothing."""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from fedq.codec import REASONS
from tests.fuzz.mutate import case_of
from tests.fuzz.oracle import ViolationError, check

MANY = 20  # violations after which there is nothing to learn from more


@dataclass
class Tally:
    """What came of the mutations."""

    outcomes: Counter[str] = field(default_factory=Counter)
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    violations: list[tuple[int, str]] = field(default_factory=list)  # number of the mutation, what it did

    @property
    def missing(self) -> list[str]:
        """Reasons that did not occur."""
        return [reason for reason in REASONS if not self.outcomes[reason]]


def run(
    numbers: range, *, seed: int, compiled_share: float = 0.0, on_done: Callable[[int], None] = lambda done: None
) -> Tally:
    """Mutations of these numbers; stops early after MANY violations. Warnings count as errors."""
    tally = Tally()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for done, number in enumerate(numbers, 1):
            case = case_of(seed=seed, number=number, compiled_share=compiled_share)
            try:
                outcome = check(case)
            except Exception as violation:  # of the oracle itself, too: then what it was given is not as it must be
                what = "" if isinstance(violation, ViolationError) else f"{type(violation).__name__} in the oracle: "
                kinds = " + ".join(case.kinds)
                tally.violations.append(
                    (number, f"{case.target}, {kinds}, {case.layout.size} values: {what}{violation}")
                )
                if len(tally.violations) == MANY:
                    break
                continue
            tally.outcomes[outcome] += 1
            for kind in case.kinds:
                tally.by_kind.setdefault(kind, Counter())[outcome] += 1
            on_done(done)
    return tally
