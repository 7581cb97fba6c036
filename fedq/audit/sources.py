"""Random sources that an auditor gives to a mechanism: they replay numbers and record all draws. Knows no mechanism.

The recorded draws, by kind, are part of a mechanism's control flow. The sources count the bits that they return,
because numbers made from few bits can be searched.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedq.privacy import RandomSource, SeededRandom
from fedq.privacy.noise import Shape, Source

Draw = tuple[str, Any]  # (distribution, its arguments)
_WORD, _DIGITS = 64, 53  # bits of a word, and of a uniform or normal number


class Noted:
    """A wrapper of a source that records all draws and counts the returned bits, also of its streams."""

    def __init__(self, source: RandomSource) -> None:
        self._source = source
        self.draws: list[Draw] = []
        self.bits = 0  # returned bits, without coins, since each coin belongs to one example
        self.streams: dict[str, Noted] = {}

    @property
    def source(self) -> Source:
        return self._source.source

    @property
    def secret_bits(self) -> int:
        return self._source.secret_bits

    def stream(self, use: str) -> "Noted":
        # Opening a stream is control flow. The amount drawn from it depends on the batch, and is not.
        self.draws.append(("stream", use))
        self.streams[use] = self._stream(use)
        return self.streams[use]

    def _stream(self, use: str) -> "Noted":
        return Noted(self._source.stream(use))

    def words(self, count: int) -> np.ndarray:
        self._note("words", count, bits=_WORD * count)
        return self._source.words(count)

    def words_of(self, examples: np.ndarray, each: int) -> np.ndarray:
        self._note("words_of", each, bits=_WORD * each * len(examples))
        return self._source.words_of(examples, each)

    def uniform(self, shape: Shape) -> np.ndarray:
        self._note("uniform", shape, bits=_DIGITS * _count(shape))
        return self._source.uniform(shape)

    def normal(self, shape: Shape) -> np.ndarray:
        self._note("normal", shape, bits=_DIGITS * _count(shape))
        return self._source.normal(shape)

    def discrete_gaussian(self, sigma: float, count: int) -> np.ndarray:
        self._note("discrete_gaussian", (sigma, count), bits=count * max(1, math.floor(math.log2(max(sigma, 2)))))
        return self._source.discrete_gaussian(sigma, count)

    def below(self, bound: int) -> int:
        self._note("below", bound, bits=max(0, bound.bit_length() - 1))
        return self._source.below(bound)

    def bernoulli(self, q: float, n: int) -> np.ndarray:
        # Without n: the number of coins is the number of examples.
        self._note("bernoulli", q, bits=0)
        return self._source.bernoulli(q, n)

    def _note(self, kind: str, asked: Any, *, bits: int) -> None:
        self.draws.append((kind, asked))
        self.bits += bits

    def __getattr__(self, name: str) -> Any:
        """Any other distribution of the wrapped source."""
        found = getattr(self._source, name)
        if not callable(found):
            return found

        def noted(*arguments: Any, **named: Any) -> Any:
            self._note(name, (arguments, tuple(sorted(named.items()))), bits=_WORD)
            return found(*arguments, **named)

        return noted


class Replayed(Noted):
    """A source with the same numbers for the same `seed`; the coins of the examples are given, one row for each step.

    `names` (n,): a number for each example of the shard. Numbers that are drawn for an example, such as masks, depend
    on its name, so they are the same at every place. Coins that are not given are drawn.
    """

    def __init__(
        self,
        seed: int,
        coins: Sequence[np.ndarray] | np.ndarray = (),
        *,
        names: np.ndarray | None = None,
        use: str = "",
    ) -> None:
        super().__init__(SeededRandom(seed, use))
        self._seed, self._use, self._names = seed, use, names
        self._coins: list[np.ndarray] = list(coins)
        self._asked: Counter[int] = Counter()  # name -> number of draws for it

    def _stream(self, use: str) -> "Replayed":
        return Replayed(self._seed, names=self._names, use=f"{self._use}/{use}")

    def words_of(self, examples: np.ndarray, each: int) -> np.ndarray:
        self._note("words_of", each, bits=_WORD * each * len(examples))
        names = [int(i) if self._names is None else int(self._names[i]) for i in examples]
        # Padding repeats examples: a repeated example gets the numbers of its first row.
        rows = {name: self._own(name).words(each) for name in dict.fromkeys(names)}
        self._asked.update(rows)
        return np.stack([rows[name] for name in names])

    def _own(self, name: int) -> SeededRandom:
        return SeededRandom(self._seed, f"{self._use} of {name}, {self._asked[name]}")

    def bernoulli(self, q: float, n: int) -> np.ndarray:
        self._note("bernoulli", q, bits=0)
        step = sum(kind == "bernoulli" for kind, _ in self.draws) - 1
        if step < len(self._coins) and len(self._coins[step]) == n:
            return self._coins[step].copy()
        return self._source.bernoulli(q, n)  # coins for another use than the examples


def _count(shape: Shape) -> int:
    return shape if isinstance(shape, int) else math.prod(shape)
