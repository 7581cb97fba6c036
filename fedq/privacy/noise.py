"""Random numbers that nobody else can reproduce, and reproducible ones that say so.
Knows keys and streams; not gradients, budgets or what the numbers are for.

Both sources read an AES-256-CTR keystream and differ in the key alone: `SecureRandom` takes 32 bytes from
the operating system and keeps them in memory; `SeededRandom` derives them from a seed, for tests, and
whatever it protects is not private. Distributions, from 64-bit words:

- `uniform`: 53 bits, multiples of 2^-53 in [0, 1).
- `bernoulli(q)`: word < floor(q 2^64), so the true rate is never above q, and below it by less than 2^-64.
- `normal`: Box-Muller in float64, the radius from 64 bits and the angle from 53. No value exceeds
  sqrt(2 ln 2^64) = 9.42; a true normal does so once in 2^67 draws. Within that the values lie on a float64
  grid and are no exact Gaussian (Mironov 2012; docs/privacy.md says what that means).
- `discrete_gaussian(sigma)`: whole numbers, exact (see `discrete`).

Each use has a stream of its own (`stream`): how many masks are drawn depends on the batch, and must not move the noise.
"""

import hashlib
import math
import os
import threading
from typing import Final, Literal, NoReturn, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedq.privacy import discrete

Source = Literal["os", "seeded"]
Shape = int | tuple[int, ...]
# Words drawn at once for normals: keeps the intermediate arrays in the processor's cache.
_BLOCK: Final = 1 << 15


class RandomSource(Protocol):
    """What the mechanism asks of a source of randomness."""

    @property
    def source(self) -> Source: ...
    @property
    def secret_bits(self) -> int: ...
    def stream(self, use: str) -> "RandomSource": ...
    def words(self, count: int) -> np.ndarray: ...
    def words_of(self, examples: np.ndarray, each: int) -> np.ndarray: ...
    def uniform(self, shape: Shape) -> np.ndarray: ...
    def normal(self, shape: Shape) -> np.ndarray: ...
    def discrete_gaussian(self, sigma: float, count: int) -> np.ndarray: ...
    def bernoulli(self, q: float, n: int) -> np.ndarray: ...
    def below(self, bound: int) -> int: ...


class _Keystream:
    """The four distributions over one keystream; safe to share between threads."""

    source: Source
    secret_bits: int  # of the key that nobody else knows

    def __init__(self, key: bytes) -> None:
        self._lock = threading.Lock()
        self._rekey(key)

    def _rekey(self, key: bytes) -> None:
        # A key is used for one stream only, so the counter may start at zero. CTR differs from a random
        # string only by never repeating a block, which shows after about 2^64 of them.
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._pid = os.getpid()

    def _before_draw(self) -> None:
        """Called under the lock before any byte is drawn."""

    def _words(self, count: int) -> np.ndarray:
        """uint64 (count,)"""
        with self._lock:
            self._before_draw()
            return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def words(self, count: int) -> np.ndarray:
        """uint64 (count,), all values equally likely."""
        return self._words(count)

    def words_of(self, examples: np.ndarray, each: int) -> np.ndarray:
        """uint64 (len(examples), each): fresh words for every example, whichever examples they are."""
        return self._words(len(examples) * each).reshape(len(examples), each)

    def uniform(self, shape: Shape) -> np.ndarray:
        """float64 in [0, 1), multiples of 2^-53."""
        return ((self._words(_count(shape)) >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def normal(self, shape: Shape) -> np.ndarray:
        """float64 standard normals (Box-Muller), at most 9.42 in size."""
        count = _count(shape)
        values = np.empty(count + count % 2)
        for start in range(0, len(values), _BLOCK):
            out = values[start : start + _BLOCK]
            half = len(out) // 2
            words = self._words(2 * half)
            # (word + 1) / 2^64 lies in (0, 1]: never log(0), and the tail reaches 2^-64.
            radius = (words[:half].astype(np.float64) + 1.0) * 2.0**-64
            np.log(radius, out=radius)
            radius *= -2.0
            np.sqrt(radius, out=radius)
            angle = (words[half:] >> np.uint64(11)) * (2.0 * math.pi * 2.0**-53)
            np.cos(angle, out=out[:half])
            np.sin(angle, out=out[half:])
            out[:half] *= radius
            out[half:] *= radius
        return values[:count].reshape(shape)

    def discrete_gaussian(self, sigma: float, count: int) -> np.ndarray:
        """int64 (count,): exact samples of the discrete Gaussian of standard deviation `sigma`, 2^10 to 2^49."""
        return discrete.discrete_gaussian(sigma, count, self._words)

    def bernoulli(self, q: float, n: int) -> np.ndarray:
        """bool (n,), each True with probability q (rounded down to a multiple of 2^-64)."""
        if not 0 <= q <= 1:
            raise ValueError(f"q={q}: a probability lies in 0..1")
        words = self._words(n)
        # Scaling by 2^64 is exact in float64; floor keeps the true rate at or below the accounted one.
        threshold = math.floor(math.ldexp(q, 64))
        if threshold == 1 << 64:
            return np.ones(n, dtype=bool)
        return words < np.uint64(threshold)

    def below(self, bound: int) -> int:
        """A whole number, 0 to bound - 1, each exactly as likely; any size of bound."""
        if bound < 1:
            raise ValueError(f"bound={bound}: must be 1 or more")
        words = max(1, (bound.bit_length() + 63) // 64)
        whole = (1 << 64 * words) // bound * bound  # what lies beyond would favour the small ones
        while True:
            drawn = int.from_bytes(self._words(words).tobytes(), "little")
            if drawn < whole:
                return drawn % bound

    def __reduce__(self) -> NoReturn:
        # A copy would repeat the same noise, and two updates under one noise subtract to the bare difference.
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: make a new one where it is needed")


class SecureRandom(_Keystream):
    """Keyed by the operating system; a forked child takes a new key before its first draw."""

    source: Source = "os"
    secret_bits = 256

    def __init__(self) -> None:
        super().__init__(os.urandom(32))

    def stream(self, use: str) -> "SecureRandom":
        """A keystream of its own for one use, such as masks; with a key of its own from the operating system."""
        return SecureRandom()

    def _before_draw(self) -> None:
        # Without this parent and child would go on with the same stream.
        if os.getpid() != self._pid:
            self._rekey(os.urandom(32))


class SeededRandom(_Keystream):
    """For tests: a reader who knows the seed can subtract the noise, so nothing drawn from it is private."""

    source: Source = "seeded"
    secret_bits = 0

    def __init__(self, seed: int, use: str = "") -> None:
        super().__init__(hashlib.sha256(f"fedq seeded noise {int(seed)}{use and ' ' + use}".encode()).digest())
        self._seed, self._use = int(seed), use

    def stream(self, use: str) -> "SeededRandom":
        """A keystream of its own for one use, by the same seed."""
        return SeededRandom(self._seed, f"{self._use}/{use}")


def _count(shape: Shape) -> int:
    return shape if isinstance(shape, int) else math.prod(shape)
