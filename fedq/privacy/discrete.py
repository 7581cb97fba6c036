"""Exact samples of the discrete Gaussian: whole numbers k with probability proportional to exp(-k^2 / (2 sigma^2)).
Knows streams of random words; not keys, gradients, grids or what the numbers are for.

Why: adding float64 normals to a sum of floats leaves low bits that tell neighbouring sums apart (Mironov 2012;
opacus#616). A whole number plus a whole number has no such bits. The mechanism is that of Canonne, Kamath and Steinke
2020 (arXiv:2004.00010); their sampler tosses a few exact coins a draw, which is slow a million times over. This one is
rejection from a histogram, as exact, one batch of words at a time:

1. |k| is proposed from bins of 2^s numbers, sigma/16 < 2^s <= sigma/8. One of 4,096 equally likely slots names the
   bin; a bin owns whole slots, so its probability is what it is and nothing is rounded. Offset and sign are bits.
2. The proposal is accepted with probability exp(-k^2 / (2 sigma^2)) * `scale` / slots of its bin, which is at most 1
   by the choice of `scale`; 94 % are. (0 comes with both signs; its second sign is turned down.)
3. The coin compares 64 random bits with that probability in float64. Where both agree to 2^-40, which is 100 times
   more than numpy's exp and the roundings can be off, the coin is tossed again in decimal arithmetic, with as many
   digits and as many further random bits as it takes. So no rounding decides anything.

What is not exact: |k| ends at 13.5 sigma. The tail beyond has probability below 2^-131 a draw, which bounds the total
variation between this sampler and the true distribution; all draws together add at most (1 + e^epsilon) times that
to delta (10^15 draws at epsilon 8: 10^-21). And sigma is the float64 that it is.
"""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

Words = Callable[[int], np.ndarray]  # count -> uint64 (count,)

SMALLEST_SIGMA: Final = 2.0**10
LARGEST_SIGMA: Final = 2.0**49  # so that 13.5 sigma are exact in float64
_SLOT_BITS: Final = 12
_TAIL: Final = 13.5  # sigmas
_UNDECIDED: Final = 2.0**-40
_BLOCK: Final = 1 << 14  # draws at once: their arrays stay in the processor's cache


class _Histogram(NamedTuple):
    """The proposal for one sigma."""

    shift: int  # bins are 2^shift wide
    bins: np.ndarray  # int64 (4096,): the bin of each slot, as its first number
    chance: np.ndarray  # float64 (4096,): `scale` / slots of that bin
    scale: float
    slots: np.ndarray  # int64 (4096,): how many slots that bin has


def covering_sigma(sigma: float) -> float:
    """The parameter whose samples are post-processing of continuous noise of `sigma`: a little more.

    The variance of 9 more pays for the difference between discrete and continuous: docs/privacy.md, step 5.
    """
    return math.hypot(sigma, 3.0) * (1 + 2.0**-50)


def discrete_gaussian(sigma: float, count: int, words: Words) -> np.ndarray:
    """int64 (count,) of mean 0 and, to 1e-100, standard deviation `sigma`; 2^10 <= sigma <= 2^49."""
    if not SMALLEST_SIGMA <= sigma <= LARGEST_SIGMA:
        raise ValueError(f"sigma={sigma}: must lie within 2^10..2^49; choose a finer or coarser grid")
    drawn = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        missing = count - done
        found = _proposals(sigma, min(_BLOCK, missing + missing // 8 + 16), words)[:missing]
        drawn[done : done + len(found)] = found
        done += len(found)
    return drawn


def _proposals(sigma: float, count: int, words: Words) -> np.ndarray:
    """Those of `count` proposals that are accepted, in order."""
    histogram = _histogram(sigma)
    proposed, coin = words(2 * count).reshape(2, count)
    slot = (proposed >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
    size = histogram.bins[slot] + (proposed & np.uint64((1 << histogram.shift) - 1)).astype(np.int64)
    negative = (proposed >> np.uint64(histogram.shift)) & np.uint64(1) == 1
    chance = size.astype(np.float64)
    chance *= chance
    chance *= -0.5 / sigma**2
    np.exp(chance, out=chance)
    chance *= histogram.chance[slot]
    margin = chance - (coin >> np.uint64(11)) * 2.0**-53
    accepted = margin > 0
    for i in np.flatnonzero(np.abs(margin) < _UNDECIDED):
        accepted[i] = _exact_coin(
            int(coin[i]), int(size[i]), sigma, histogram.scale, int(histogram.slots[slot[i]]), words
        )
    accepted &= ~(negative & (size == 0))
    return np.where(negative, -size, size)[accepted]


def _exact_coin(coin: int, size: int, sigma: float, scale: float, slots: int, words: Words) -> bool:
    """Whether a uniform number that begins with these 64 bits lies below the chance of acceptance."""
    bits = 64
    while True:
        with localcontext() as context:
            context.prec = bits // 3 + 40
            exponent = -(Decimal(size) ** 2) / (2 * Decimal(sigma) ** 2)
            chance = exponent.exp() * Decimal(scale) / slots * Decimal(2) ** bits
            off = chance * Decimal(10) ** (10 - context.prec)  # far more than the roundings of these few operations
            if coin + 1 <= chance - off:
                return True
            if coin >= chance + off:
                return False
        coin = (coin << 64) | int(words(1)[0])
        bits += 64


@lru_cache(maxsize=16)
def _histogram(sigma: float) -> _Histogram:
    shift = math.floor(math.log2(sigma / 8))
    width = 2.0**shift
    starts = np.arange(math.ceil(_TAIL * sigma / width)) * width
    # Of a bin's numbers the first is the likeliest. A hair more, so that no rounding makes a chance exceed 1.
    heights = np.exp(-0.5 * (starts / sigma) ** 2) * (1 + 2.0**-30)
    low, high = 1.0, float(1 << _SLOT_BITS)
    while high - low > 2.0**-20:  # the largest scale whose bins fit into the slots
        middle = (low + high) / 2
        fits = np.ceil(middle * heights).sum() <= 1 << _SLOT_BITS
        low, high = (middle, high) if fits else (low, middle)
    slots = np.ceil(low * heights).astype(np.int64)
    slots[0] += (1 << _SLOT_BITS) - slots.sum()  # what is left over; the likeliest bin is only turned down more often
    return _Histogram(
        shift=shift,
        bins=np.repeat(starts.astype(np.int64), slots),
        chance=np.repeat(low / slots, slots),
        scale=low,
        slots=np.repeat(slots, slots),
    )
