"""Random generators keyed by (seed, purpose, client, time). Does not know any global state or caller.

A draw depends only on its key, never on earlier draws, so one experiment gives the same bits in every process, order
or runtime.
"""

import hashlib

import numpy as np

Part = int | str


def key(seed: int, *parts: Part) -> int:
    """128-bit key of (seed, parts): BLAKE2b over an unambiguous encoding."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def key64(seed: int, *parts: Part) -> int:
    """The same as an unsigned 63-bit integer, for libraries that take a small seed."""
    return key(seed, *parts) & (2**63 - 1)


def generator(seed: int, *parts: Part) -> np.random.Generator:
    """A separate counter-based generator (Philox) for the key."""
    return np.random.Generator(np.random.Philox(key=key(seed, *parts)))
