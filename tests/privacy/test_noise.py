"""The random source: distributions by theory, and nobody draws the same noise twice."""

import copy
import math
import os
import pickle
from statistics import NormalDist

import numpy as np
import pytest

from fedq.privacy import SecureRandom, SeededRandom

N = 400_000


@pytest.fixture
def seeded() -> SeededRandom:
    return SeededRandom(7)


def test_normals_have_mean_zero_and_variance_one(seeded):
    z = seeded.normal(N)
    assert abs(z.mean()) <= 6 / math.sqrt(N)
    assert abs(z.var() - 1) <= 6 * math.sqrt(2 / N)  # Var of z^2 is 2


def test_normals_have_the_fourth_moment_of_a_gaussian(seeded):
    z = seeded.normal(N)
    assert abs((z**4).mean() - 3) <= 6 * math.sqrt(96 / N)  # Var of z^4 is 105 - 9


def test_normals_follow_the_gaussian_distribution_function(seeded):
    # Kolmogorov-Smirnov: P(sup > t / sqrt(n)) <= 2 exp(-2 t^2) = 7e-8 at t = 2.93
    z = np.sort(seeded.normal(20_000))
    theory = np.array([NormalDist().cdf(value) for value in z])
    assert np.abs(np.arange(1, len(z) + 1) / len(z) - theory).max() <= 2.93 / math.sqrt(len(z))


@pytest.mark.parametrize("bound", [2.0, 3.0, 4.0])
def test_normal_tails_are_as_heavy_as_they_should_be(bound, seeded):
    expected = 2 * NormalDist().cdf(-bound)
    found = (np.abs(seeded.normal(N)) > bound).mean()
    assert abs(found - expected) <= 6 * math.sqrt(expected / N)


def test_normals_of_one_draw_are_uncorrelated_with_each_other_and_the_next_draw(seeded):
    # The two halves of a block share radii (Box-Muller's pairs): uncorrelated, and so are their squares.
    first, second = seeded.normal(1 << 15), seeded.normal(1 << 15)
    half = 1 << 14
    for a, b in [(first[:half], first[half:]), (first, second), (first[:-1], first[1:])]:
        assert abs((a * b).mean()) <= 6 / math.sqrt(len(a))
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) <= 6 * 2 / math.sqrt(len(a))


@pytest.mark.parametrize("shape", [0, 1, 3, (1 << 15) + 1, (3, 5), ()])
def test_normals_come_in_the_shape_asked_for(shape, seeded):
    values = seeded.normal(shape)
    assert values.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert values.dtype == np.float64
    assert np.isfinite(values).all()


def test_the_largest_radius_is_finite_and_the_smallest_word_gives_it(seeded, monkeypatch):
    monkeypatch.setattr(seeded, "_words", lambda n: np.zeros(n, dtype=np.uint64))
    # word 0: radius sqrt(-2 ln 2^-64), angle 0: the cosine part is the radius, the sine part 0
    assert seeded.normal(2) == pytest.approx([math.sqrt(2 * 64 * math.log(2)), 0.0])


def test_the_largest_word_gives_radius_zero(seeded, monkeypatch):
    monkeypatch.setattr(seeded, "_words", lambda n: np.full(n, 2**64 - 1, dtype=np.uint64))
    assert np.abs(seeded.normal(2)).max() == 0.0


def test_uniforms_fill_the_unit_interval_evenly(seeded):
    u = seeded.uniform(N)
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, bins=100, range=(0, 1))[0]
    chi_square = ((counts - N / 100) ** 2 / (N / 100)).sum()
    assert abs(chi_square - 99) <= 6 * math.sqrt(2 * 99)  # both too uneven and too even fail


def test_uniforms_use_53_bits(seeded):
    scaled = seeded.uniform(1000) * 2.0**53
    assert (scaled == np.floor(scaled)).all()
    assert (scaled % 2 == 1).any()


@pytest.mark.parametrize("q", [0.01, 0.3, 0.5, 0.999])
def test_bernoulli_is_true_at_its_rate(q, seeded):
    drawn = seeded.bernoulli(q, N)
    assert drawn.dtype == np.bool_
    assert abs(drawn.mean() - q) <= 6 * math.sqrt(q * (1 - q) / N)


def test_bernoulli_draws_are_independent_of_their_neighbours(seeded):
    centred = seeded.bernoulli(0.5, N) - 0.5
    assert abs((centred[:-1] * centred[1:]).mean()) <= 6 * 0.25 / math.sqrt(N)


def test_bernoulli_of_zero_and_one_are_certain(seeded):
    assert not seeded.bernoulli(0.0, 1000).any()
    assert seeded.bernoulli(1.0, 1000).all()


@pytest.mark.parametrize(("word", "drawn"), [(2**62 - 1, True), (2**62, False)])
def test_bernoulli_compares_with_the_rate_on_64_bits(word, drawn, seeded, monkeypatch):
    monkeypatch.setattr(seeded, "_words", lambda n: np.full(n, word, dtype=np.uint64))
    assert seeded.bernoulli(0.25, 1)[0] == drawn  # 2^62 of 2^64 words are below


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_bernoulli_refuses_what_is_no_probability(q, seeded):
    with pytest.raises(ValueError, match="probability"):
        seeded.bernoulli(q, 3)


def test_the_same_seed_gives_the_same_stream_and_another_seed_another():
    assert (SeededRandom(5).normal(100) == SeededRandom(5).normal(100)).all()
    assert not np.intersect1d(SeededRandom(5).normal(100), SeededRandom(6).normal(100)).size


def test_the_seeded_stream_is_aes_256_ctr_of_the_hashed_seed():
    import hashlib

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = hashlib.sha256(b"fedq seeded noise 5").digest()
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # CTR from zero: E(0), E(1), ...
    stream = block.update(bytes(16)) + block.update(bytes(15) + b"\1")
    words = np.frombuffer(stream, dtype="<u8")
    assert (SeededRandom(5).uniform(4) == (words >> np.uint64(11)) / 2**53).all()


def test_two_secure_sources_never_agree():
    assert not np.intersect1d(SecureRandom().normal(1000), SecureRandom().normal(1000)).size


def test_sources_say_what_they_are():
    assert SecureRandom().source == "os"
    assert SeededRandom(1).source == "seeded"


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("make", [SecureRandom, lambda: SeededRandom(1)])
def test_a_source_cannot_be_copied(copier, make):
    with pytest.raises(TypeError, match="cannot be copied"):
        copier(make())


def test_parent_and_forked_child_draw_different_noise():
    random = SecureRandom()
    random.normal(10)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # bytes only, no torch: safe after a fork
        os.write(writer, random.normal(50).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    drawn_by_child = np.frombuffer(os.read(reader, 400))
    os.close(reader)
    os.close(writer)
    assert len(drawn_by_child) == 50
    assert not np.intersect1d(drawn_by_child, random.normal(50)).size
