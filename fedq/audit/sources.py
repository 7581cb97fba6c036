"""Sources of randomness that an auditor hands to a mechanism: replayed, and written down. Knows no mechanism.

What is asked of them, kind by kind, is part of a mechanism's control flow.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedq.privacy import RandomSource, SeededRandom
from fedq.privacy.noise import Shape, Source

Draw = tuple[str, Any]  # the distribution, and what it was asked for


class Noted:
    """Another source, and a list of all that was asked of it."""

    def __init__(self, source: RandomSource) -> None:
        self._source = source
        self.draws: list[Draw] = []

    @property
    def source(self) -> Source:
        return self._source.source

    def uniform(self, shape: Shape) -> np.ndarray:
        self.draws.append(("uniform", shape))
        return self._source.uniform(shape)

    def normal(self, shape: Shape) -> np.ndarray:
        self.draws.append(("normal", shape))
        return self._source.normal(shape)

    def bernoulli(self, q: float, n: int) -> np.ndarray:
        # Not n: how many examples there are is no secret to whoever draws their coins.
        self.draws.append(("bernoulli", q))
        return self._source.bernoulli(q, n)

    def __getattr__(self, name: str) -> Any:
        """A distribution that only some mechanisms ask for."""
        found = getattr(self._source, name)
        if not callable(found):
            return found

        def noted(*arguments: Any, **named: Any) -> Any:
            self.draws.append((name, (arguments, tuple(sorted(named.items())))))
            return found(*arguments, **named)

        return noted


class Replayed(Noted):
    """The same numbers for the same `seed`, while the coins of the examples are given: one row a step."""

    def __init__(self, seed: int, coins: Sequence[np.ndarray]) -> None:
        super().__init__(SeededRandom(seed))
        self._coins = list(coins)

    def bernoulli(self, q: float, n: int) -> np.ndarray:
        self.draws.append(("bernoulli", q))
        step = sum(kind == "bernoulli" for kind, _ in self.draws) - 1
        if step < len(self._coins) and len(self._coins[step]) == n:
            return self._coins[step].copy()
        return self._source.bernoulli(q, n)  # coins for something else than the examples
