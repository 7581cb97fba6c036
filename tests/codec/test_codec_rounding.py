"""The random words: the documented formula, the same words for any split, and no visible pattern."""

from itertools import pairwise

import numpy as np
import pytest

from fedq.codec.rounding import random_halves, random_words

MASK = 2**64 - 1


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def word(key: int, i: int) -> int:
    """The formula of the docstring, in Python integers."""
    pair_hash = mix((mix(key) + (i // 2 + 1) * 0x9E3779B97F4A7C15) & MASK)
    return pair_hash >> 32 if i % 2 else pair_hash & 0xFFFFFFFF


def test_the_hash_is_splitmix64():
    # First outputs for seed 1234567 as published on Rosetta Code, "Pseudo-random numbers/Splitmix64".
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [mix((1234567 + (j + 1) * 0x9E3779B97F4A7C15) & MASK) for j in range(4)] == published


@pytest.mark.parametrize("key", [0, 1, 0x9E3779B97F4A7C15, 2**64 - 1])
@pytest.mark.parametrize(("first", "count"), [(0, 9), (1, 8), (7, 1), (6, 2), (2**33 + 1, 4), (5, 0)])
def test_words_follow_the_documented_formula(key, first, count):
    words = random_words(key=key, first_index=first, count=count)
    assert words.tolist() == [word(key, i) for i in range(first, first + count)]


@pytest.mark.parametrize(("first", "count"), [(0, 9), (1, 8), (7, 1), (6, 2), (2**33 + 3, 5), (5, 0)])
def test_halves_follow_the_documented_formula(first, count):
    hashes = [mix((mix(7) + (i // 4 + 1) * 0x9E3779B97F4A7C15) & MASK) for i in range(first, first + count)]
    halves = random_halves(key=7, first_index=first, count=count)
    assert halves.tolist() == [h >> 16 * (i % 4) & 0xFFFF for i, h in enumerate(hashes, first)]


def test_words_do_not_depend_on_how_the_vector_is_split():
    whole = random_words(key=42, first_index=0, count=1000)
    cuts = [0, 1, 2, 333, 500, 999, 1000]
    parts = [random_words(key=42, first_index=a, count=b - a) for a, b in pairwise(cuts)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_each_bit_is_set_half_of_the_time():
    n = 100_000
    words = random_words(key=3, first_index=0, count=n)
    share = np.array([(words >> np.uint32(bit) & np.uint32(1)).mean() for bit in range(32)])
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(n)  # standard deviation of a share: 0.5 / sqrt(n)


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (0x9E3779B97F4A7C15, 0), (0x9E3779B97F4A7C15, 2)])
def test_streams_of_other_keys_and_shifted_streams_are_uncorrelated(other):
    n, (key, shift) = 100_000, other
    first = random_words(key=0, first_index=0, count=n) / 2.0**32 - 0.5
    second = random_words(key=key, first_index=shift, count=n) / 2.0**32 - 0.5
    # Independent uniforms: the mean product has standard deviation (1/12) / sqrt(n).
    assert abs((first * second).mean()) < 5 / 12 / np.sqrt(n)
