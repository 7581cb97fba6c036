"""What is wrong with an experiment, said so that a person can fix it. Knows nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One mistake: which key, what it was, the rule it breaks and how to fix it."""

    key: str
    value: Any
    rule: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.rule}. {self.fix}"


class ConfigError(ValueError):
    """The experiment cannot be run as asked; `problems` holds every reason found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(p) for p in self.problems))
