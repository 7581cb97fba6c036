"""The rotation and what is sent of rotated blocks: orthonormal, exactly undone, unbiased, of Lloyd-Max's error."""

import numpy as np
import pytest
from scipy.linalg import hadamard

from fedq.codec import Int2, Int4, Int8, Layout, Sign, decode, encode, lloyd
from fedq.codec.lloyd import LLOYD_MAX, tree_sum
from fedq.codec.rotation import LARGEST_VALUE, rotate, unrotate

WIDTHS = [128, 256, 512, 4096, 65536]


def decoded(vector, codec, key=0):
    layout = Layout.flat(vector.size)
    return decode(encode(vector, codec, layout=layout, key=key), layout)


def nmse(vector, codec, keys=range(4)):
    x = vector.astype(np.float64)
    return np.mean([np.sum((decoded(vector, codec, key) - x) ** 2) for key in keys]) / np.sum(x * x)


@pytest.mark.parametrize("width", WIDTHS)
def test_rotating_keeps_the_norm_and_is_undone(width, rng):
    rows = rng.normal(size=(2, width)).astype(np.float32)
    rotated = rotate(rows, first_index=77, seed=5)
    # Two transforms of up to 16 steps and a factor each way: 68 roundings of 2^-24.
    bound = 68 * 2.0**-24
    assert np.abs(np.linalg.norm(rotated, axis=1) / np.linalg.norm(rows, axis=1) - 1).max() < bound
    unrotate(rotated, first_index=77, seed=5)
    assert np.linalg.norm(rotated - rows) < bound * np.linalg.norm(rows)


def test_a_rotation_is_signs_and_hadamard_matrices():
    """From the matrix of a one-hot basis: what the document says, with scipy's Hadamard matrix."""
    w = 128
    rotated = rotate(np.eye(w, dtype=np.float32), first_index=0, seed=3)
    expected = np.eye(w)
    for step in (0, 1):
        # Each row of the basis stands at its own place of the vector: row i begins at index i * w.
        expected = (expected * signs_of(np.arange(w * w), seed=3, step=step).reshape(w, w)) @ hadamard(w) / np.sqrt(w)
    assert np.allclose(rotated, expected, atol=1e-5)


def signs_of(indices, *, seed, step):
    from tests.codec import independent_decoder

    key = seed + (step + 1) * 2**32
    return np.array([1 - 2 * (independent_decoder.word(key, int(i) // 32) >> (int(i) % 32) & 1) for i in indices])


def test_a_spike_is_spread_over_the_whole_block():
    spike = np.zeros((1, 4096), np.float32)
    spike[0, 17] = 1
    rotated = rotate(spike, first_index=0, seed=1)
    # After two passes each value is 1/64 times a sum of 4096 signs over 64: |value| < 6 / 64 but for 1 in 10^8.
    assert 0 < np.abs(rotated).max() < 6 / 64


@pytest.mark.parametrize(
    ("codec", "bound"), [(Sign(rotate=True), 0.58), (Int2(rotate=True), 0.14), (Int4(rotate=True), 0.01)]
)
def test_gaussian_values_lose_what_lloyd_max_loses(codec, bound, rng):
    # The mean over 65,536 values strays by less than 1 %: a value's squared error has a deviation of about itself.
    assert nmse(rng.normal(size=65536).astype(np.float32), codec) < bound


@pytest.mark.parametrize(
    ("codec", "theory"),
    [(Sign(rotate=True, error_feedback=True), 1 - 2 / np.pi), (Int2(rotate=True, error_feedback=True), 0.1175)],
)
def test_with_feedback_the_error_is_the_least(codec, theory, rng):
    assert nmse(rng.normal(size=65536).astype(np.float32), codec) == pytest.approx(theory, rel=0.02)


def test_heavy_tails_cost_no_more_than_gaussian_values(rng):
    """What the rotation is for: without it, the outliers of a Student t of 3 decide the scale of int4."""
    heavy = rng.standard_t(3, size=65536).astype(np.float32)
    assert nmse(heavy, Int4(rotate=True)) < 0.0105
    assert nmse(heavy, Int4(block=4096)) > 0.05


UNBIASED = [
    Sign(block=256, rotate=True),
    Int2(block=256, rotate=True),
    Int4(block=256, rotate=True),
    Int4(block=256, rotate=True, rounding="stochastic"),
    Int8(rounding="stochastic"),
    Int4(rounding="stochastic"),
    Int2(rounding="stochastic"),
    Sign(rounding="stochastic"),
]


@pytest.mark.slow
@pytest.mark.parametrize("codec", UNBIASED)
def test_the_mean_over_many_packets_is_the_vector(codec, rng):
    """Sparse, skewed and smooth values, 300 of them: blocks of 256 and 128 where the codec rotates.

    The mean of k decoded vectors is off by the deviation of one over sqrt(k) in each value. Of even levels that
    is at most half a step; of rotated values it is measured. 6 of them are allowed, which one of 900 values passes by
    chance once in 10^6 tests; to them come float32's arithmetic and, since a Hadamard rotation of 128 values is not
    quite a uniform one, 1 % of the largest value.
    """
    k = 3000
    for vector in (
        np.eye(300)[0] * 2 + np.eye(300)[1],
        np.eye(300)[299] * 2 + np.eye(300)[1],
        rng.exponential(size=300),
        np.sin(np.arange(300) / 20),
    ):
        x = vector.astype(np.float32)
        largest = np.abs(x).max()
        packets = np.stack([decoded(x, codec, key) for key in range(k)]).astype(np.float64)
        if codec.rotate:
            allowed = 6 * packets.std(axis=0) / np.sqrt(k) + 0.01 * largest
        else:
            step = largest / max(1, 2 ** (codec.bits - 1) - 1) * (2 if codec.bits == 1 else 1)
            allowed = 6 * 0.5 * step / np.sqrt(k) + 2.0**-15 * largest
        assert (np.abs(packets.mean(axis=0) - x) <= allowed).all()


@pytest.mark.parametrize(
    "n", [257, 384, 511, 1000, 4095, *(pytest.param(n, marks=pytest.mark.slow) for n in (383, 500, 7840, 8191))]
)
@pytest.mark.parametrize("codec", [Sign(rotate=True), Int2(rotate=True), Int4(rotate=True)])
def test_halves_of_different_size_are_both_unbiased(codec, n, rng):
    """Whatever the length: values that are not mixed with all others under one scale would be off by up to 9 times."""
    x = rng.normal(size=n).astype(np.float32)
    x[: n // 2] *= np.float32(0.1)
    k = 60
    error = np.mean([decoded(x, codec, key) for key in range(k)], axis=0) - x
    for half in (slice(0, n // 2), slice(n // 2, n)):
        # <error, x_half> / |x_half|^2: |error| is at most 0.76 |x| in one packet, and in a random direction.
        along = np.dot(error[half].astype(np.float64), x[half]) / np.dot(x[half], x[half])
        size = 0.76 * np.linalg.norm(x) / np.linalg.norm(x[half])
        assert abs(along) < 6 * size / np.sqrt(n * k) * np.sqrt(2) + 0.01


@pytest.mark.parametrize("codec", [Sign(rotate=True), Int2(rotate=True), Int4(rotate=True)])
def test_the_length_along_the_vector_is_kept_in_every_packet(codec, rng):
    """<decoded, x> = |x|^2 for each rotation, not only in the mean: what the unbiased scale is made for."""
    x = rng.normal(size=4096).astype(np.float32)
    along = np.dot(decoded(x, codec).astype(np.float64), x.astype(np.float64)) / np.dot(x.astype(np.float64), x)
    assert along == pytest.approx(1, abs=1e-5)


def test_the_tables_are_those_of_lloyd_and_max():
    """Each level is the mean of a Gaussian between its thresholds, each threshold in the middle of two levels."""
    from scipy.stats import norm

    for bits in (2, 4):
        table = LLOYD_MAX[bits]
        points, thresholds = table.points.astype(np.float64), table.thresholds.astype(np.float64)
        edges = np.concatenate([[-np.inf], thresholds, [np.inf]])
        means = (norm.pdf(edges[:-1]) - norm.pdf(edges[1:])) / (norm.cdf(edges[1:]) - norm.cdf(edges[:-1]))
        assert np.abs(means - points).max() < 1e-6
        assert np.abs((points[1:] + points[:-1]) / 2 - thresholds).max() < 1e-6
    assert LLOYD_MAX[1].points.tolist() == [-1, 1]


def test_a_table_is_its_positive_half_and_the_mirror_image_of_it():
    table = lloyd._symmetric([1.0, 3.0, 5.0], [2.0, 4.0])
    assert table.points.tolist() == [-5, -3, -1, 1, 3, 5]
    assert table.thresholds.tolist() == [-4, -2, 0, 2, 4]
    assert table.points.dtype == table.thresholds.dtype == np.float32


def test_codes_and_scales_worked_by_hand():
    rows = np.array([[1, -1, 3, 0]], np.float32)  # |z|^2 = 11, root mean square 1.66
    scales, codes = lloyd.to_codes(rows, LLOYD_MAX[1], error_feedback=False)
    assert codes.tolist() == [[1, 0, 1, 0]]  # as many thresholds as are below: 0 is not below 0
    assert scales.tolist() == [np.float32(11 / 5)]  # <z, q> = 1 + 1 + 3 - 0
    scales, codes = lloyd.to_codes(rows, LLOYD_MAX[1], error_feedback=True)
    assert scales.tolist() == [5 / 4]  # |q|^2 = 4
    scales, codes = lloyd.to_codes(rows, LLOYD_MAX[2], error_feedback=False)
    assert codes.tolist() == [[2, 1, 3, 1]]  # 1 / 1.66 is below the threshold 0.98, 3 / 1.66 is not


@pytest.mark.parametrize("error_feedback", [False, True])
def test_a_block_vanishes_below_a_mean_square_of_2_to_the_minus_200(error_feedback):
    rows = np.array([[2.0**-100] * 4, [2.0**-101] * 4], np.float32)
    scales, codes = lloyd.to_codes(rows, LLOYD_MAX[1], error_feedback=error_feedback)
    assert scales.tolist() == [2.0**-100, 0]
    assert codes.tolist() == [[1] * 4, [0] * 4]  # a vanishing value has the code of zero


def test_the_tree_adds_the_second_half_to_the_first():
    rows = np.array([[2.0**53, 1.0, -(2.0**53), 1.0]])
    assert tree_sum(rows).tolist() == [2.0]  # (2^53 - 2^53) + (1 + 1)
    assert tree_sum(rows[:, [0, 2, 1, 3]]).tolist() == [1.0]  # (2^53 + 1) + (-2^53 + 1): the first 1 is rounded away
    assert tree_sum(rows[:, :3]).tolist() == [1.0]  # padded with a zero
    assert tree_sum(np.array([[3.0]])).tolist() == [3.0]


@pytest.mark.parametrize("codec", [Sign(rotate=True), Int2(rotate=True), Int4(rotate=True), Int8(rotate=True)])
@pytest.mark.parametrize("n", [256, 257, 6143, 6144, 6145])
def test_zeros_and_vanishing_values_come_back_as_zeros(codec, n):
    assert not decoded(np.zeros(n, np.float32), codec).any()
    assert np.abs(decoded(np.full(n, 2.0**-140, np.float32), codec)).max() <= 2.0**-115


@pytest.mark.parametrize("codec", [Sign(rotate=True), Int4(rotate=True), Int8(rotate=True)])
def test_values_up_to_the_limit_are_carried_and_larger_ones_refused(codec):
    vector = np.full(70000, LARGEST_VALUE, np.float32)
    assert np.isfinite(decoded(vector, codec)).all()
    vector[69999] = np.nextafter(LARGEST_VALUE, np.float32(np.inf))
    with pytest.raises(ValueError, match=r"value of magnitude 1\.20893e\+24: a rotated codec carries at most"):
        decoded(vector, codec)


@pytest.mark.parametrize("first", [0, 1, 31, 32, 33, 1000])
def test_signs_depend_on_the_place_in_the_vector_alone(first, rng):
    rows = np.ones((1, 256), np.float32)
    both = rotate(np.ones((2, 256), np.float32), first_index=first, seed=9)
    assert np.array_equal(both[1:], rotate(rows, first_index=first + 256, seed=9))


def test_packets_of_different_keys_are_rotated_differently(rng):
    x = rng.normal(size=4096).astype(np.float32)
    errors = np.stack([decoded(x, Sign(rotate=True), key) - x for key in range(8)])
    # So that errors of clients average out: of 8 independent ones the mean has an eighth of the square.
    assert np.sum(errors.mean(axis=0) ** 2) < 1.3 / 8 * np.mean(np.sum(errors**2, axis=1))


@pytest.mark.parametrize("codec", [Sign(rotate=True), Int4(rotate=True), Int8(rotate=True), Int2(rotate=True)])
def test_floating_point_traps_of_the_caller_are_not_sprung(codec):
    vector = np.tile(np.array([2.0**-149, -(2.0**-127), 1.0, 0.0], np.float32), 100)
    tiny = np.full(400, 2.0**-149, np.float32)
    with np.errstate(all="raise"):
        assert np.isfinite(decoded(vector, codec)).all()
        assert np.isfinite(decoded(tiny, codec)).all()
