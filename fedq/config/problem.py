"""A problem of a config with its fix, and the exception that holds all problems."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One mistake: the key, its value, the rule that it breaks, and the fix."""

    key: str
    value: Any
    rule: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.rule}. {self.fix}"


class ConfigError(ValueError):
    """The experiment cannot be run; its attribute `problems` holds all reasons."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(p) for p in self.problems))
