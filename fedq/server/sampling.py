"""Who takes part in a round. Knows names, a seed or a secret stream; not messages, weights or privacy budgets."""

from collections.abc import Sequence
from typing import Protocol

from fedq.core.randomness import generator
from fedq.privacy import RandomSource


class Sampler(Protocol):
    """Draws the cohort of each round."""

    clients: list[str]

    @property
    def source(self) -> str:
        """What the draw can be computed from again: seed (by anybody), seeded (for tests), os (by nobody)."""
        ...

    def cohort(self, round: int, size: int) -> list[str]: ...


class CyclicSampler:
    """Shuffle-and-deal: every client is dealt once before any client is dealt again.

    Independent sampling gave 4 to 18 participations where 10 were expected, and the noise that a DP run adds
    must cover the client that takes part most often. Here, after R rounds of m among N, every client has
    taken part at most ceil(R * m / N) times: the cap to which noise is calibrated.

    The order is a function of (seed, deck) and of the sorted names alone, so it is the same on every runtime.
    """

    source = "seed"

    def __init__(self, clients: Sequence[str], *, seed: int) -> None:
        self.clients = sorted(clients, key=_natural)
        self._seed = seed
        self._dealt: list[str] = []  # the decks so far, one after the other
        self._decks = 0

    def cohort(self, round: int, size: int) -> list[str]:
        """The `size` clients of round 1, 2, ... in the order of their names; no client twice."""
        if not 1 <= size <= len(self.clients):
            raise ValueError(f"cohort of {size} among {len(self.clients)} clients: must be 1 to all of them")
        first = (round - 1) * size
        while len(self._dealt) < first + size:
            self._dealt += self._next_deck(size)
        return sorted(self._dealt[first : first + size], key=_natural)

    def _next_deck(self, size: int) -> list[str]:
        order = generator(self._seed, "deal", self._decks).permutation(len(self.clients))
        deck = [self.clients[i] for i in order]
        self._decks += 1
        # A cohort may straddle two decks: those that it already holds go to the end of the new one.
        begun = set(self._dealt[len(self._dealt) - len(self._dealt) % size :])
        return [c for c in deck if c not in begun] + [c for c in deck if c in begun]


class SecretPoisson:
    """Each client is in each round by chance, on its own, at a public rate; who is in is nobody's to know.

    Noise is amplified by the rate against readers of the models, who do not know the cohorts. A client knows when
    it was asked itself; the server and an observer of the network know all.
    """

    def __init__(self, clients: Sequence[str], *, rate: float, random: RandomSource) -> None:
        if not 0 < rate < 1:
            raise ValueError(
                f"rate={rate}: must be between 0 and 1; at 1 all are in every round, and nothing is secret"
            )
        self.clients = sorted(clients, key=_natural)
        self._rate, self._random = rate, random

    @property
    def source(self) -> str:
        return self._random.source

    def cohort(self, round: int, size: int) -> list[str]:
        """The clients of a round, often none; `size` is what the rate makes of them on average."""
        drawn = self._random.bernoulli(self._rate, len(self.clients))
        return [client for client, is_in in zip(self.clients, drawn, strict=True) if is_in]


def _natural(name: str) -> tuple[int, int, str]:
    """2 before 10, and any other name after the numbers."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)
