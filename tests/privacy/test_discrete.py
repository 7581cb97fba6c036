"""The discrete Gaussian's sampler against its own probabilities, and against itself without the fast path."""

import math

import numpy as np
import pytest
from scipy.stats import chi2

from fedq.privacy import SeededRandom, discrete
from fedq.privacy.discrete import SMALLEST_SIGMA, discrete_gaussian


def words(seed: int):
    return SeededRandom(seed)._words


def test_ten_million_draws_pass_a_chi_square_test_value_by_value():
    """At the smallest sigma, where single values are likely enough; all 6,145 within 3 sigma, and both tails."""
    sigma, draws = SMALLEST_SIGMA, 10_000_000
    reach = int(3 * sigma)
    drawn = SeededRandom(1).discrete_gaussian(sigma, draws)
    far = np.arange(-int(15 * sigma), int(15 * sigma) + 1)
    chances = np.exp(-0.5 * (far / sigma) ** 2)
    chances /= chances.sum()
    inside = np.abs(far) <= reach
    expected = draws * np.array([chances[far < -reach].sum(), *chances[inside], chances[far > reach].sum()])
    counts = np.bincount(np.clip(drawn, -reach - 1, reach + 1) + reach + 1, minlength=len(expected))
    assert len(expected) == 2 * reach + 3
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert chi2.sf(statistic, len(expected) - 1) > 1e-4  # neither a poor fit
    assert chi2.cdf(statistic, len(expected) - 1) > 1e-4  # nor one too good to be random


@pytest.mark.parametrize("sigma", [2.0**10, 12345.6, 2.0**26, 1.1 * 2.0**26, 3e9, 2.0**49])
def test_mean_variance_tails_and_low_bits_are_right_at_any_sigma(sigma):
    n = 400_000
    drawn = SeededRandom(2).discrete_gaussian(sigma, n)
    assert drawn.dtype == np.int64
    scaled = drawn / sigma
    assert abs(scaled.mean()) <= 5 / math.sqrt(n)
    assert abs((scaled**2).mean() - 1) <= 5 * math.sqrt(2 / n)
    assert abs((scaled**4).mean() - 3) <= 5 * math.sqrt(96 / n)
    for beyond in (1.0, 2.0, 3.0):
        chance = math.erfc(beyond / math.sqrt(2))
        assert abs((np.abs(scaled) > beyond).mean() - chance) <= 5 * math.sqrt(chance / n)
    for bit in (1, 2, 4, 8):  # at sigma 1024 the low bits of a discrete Gaussian are fair but for e^-500,000
        assert abs((drawn & bit != 0).mean() - 0.5) <= 5 * 0.5 / math.sqrt(n)
    assert abs((drawn > 0).mean() - (drawn < 0).mean()) <= 5 / math.sqrt(n)


@pytest.mark.parametrize("sigma", [1024.0, 7.7e7])
def test_the_exact_coin_gives_the_same_bits_as_the_fast_one(sigma, monkeypatch):
    fast = discrete_gaussian(sigma, 2000, words(3))
    monkeypatch.setattr(discrete, "_UNDECIDED", 2.0)  # every coin
    assert np.array_equal(discrete_gaussian(sigma, 2000, words(3)), fast)


def test_a_coin_that_64_bits_leave_undecided_takes_further_ones():
    """The chance is exp(-1/2): 64 bits of it are given, and the next words decide."""
    sigma = 1024.0
    first = int(math.ldexp(0.6065306597126334, 64))
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = 80
        digits = int((Decimal(-1) / 2).exp() * Decimal(2) ** 128)
    assert digits >> 64 == pytest.approx(first, rel=1e-15)
    asked = []

    def tell(value):
        def more(count):
            asked.append(count)
            return np.array([value], dtype=np.uint64)

        return more

    below, above = (digits & (2**64 - 1)) - 1, (digits & (2**64 - 1)) + 1
    assert discrete._exact_coin(digits >> 64, 1024, sigma, 1.0, 1, tell(below)) is True
    assert discrete._exact_coin(digits >> 64, 1024, sigma, 1.0, 1, tell(above)) is False
    assert asked == [1, 1]


@pytest.mark.parametrize("sigma", [1024.0, 1500.5, 2.0**26, 1e12, 2.0**49])
def test_no_proposal_s_chance_exceeds_one_and_the_tail_reaches_13_sigma(sigma):
    histogram = discrete._histogram(sigma)
    width = 1 << histogram.shift
    assert sigma / 16 < width <= sigma / 8
    assert len(histogram.bins) == 4096
    assert int(histogram.bins.max()) + width >= 13.5 * sigma
    assert (np.exp(-0.5 * (histogram.bins / sigma) ** 2) * histogram.chance <= 1).all()
    for first in np.unique(histogram.bins):
        assert (histogram.slots[histogram.bins == first] == (histogram.bins == first).sum()).all()


def test_zero_is_as_likely_as_its_neighbours():
    """It is proposed with two signs."""
    drawn = SeededRandom(5).discrete_gaussian(1024.0, 4_000_000)
    counts = np.bincount(drawn[np.abs(drawn) <= 1] + 1)
    expected = 4_000_000 / (1024 * math.sqrt(2 * math.pi))
    assert (np.abs(counts - expected) <= 5 * math.sqrt(expected)).all()


@pytest.mark.parametrize("sigma", [0.0, 1023.0, 2.0**50, math.nan, math.inf])
def test_a_sigma_out_of_range_is_refused(sigma):
    with pytest.raises(ValueError, match=r"sigma=.*2\^10\.\.2\^49"):
        SeededRandom(0).discrete_gaussian(sigma, 3)


@pytest.mark.parametrize("count", [0, 1, 7, 100_000])
def test_as_many_are_drawn_as_asked(count):
    assert SeededRandom(0).discrete_gaussian(1e6, count).shape == (count,)
