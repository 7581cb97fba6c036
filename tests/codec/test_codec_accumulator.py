"""The accumulator: exact sums in any order, documented accuracy, and refusals that change nothing."""

import struct
from fractions import Fraction

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq.codec import Accumulator, Float32, Int8, Layout, MalformedUpdate, encode

GRID = 2**32
HEADER = 72


def packed(values, codec="float32", **fields):
    vector = np.asarray(values, np.float32)
    return encode(vector, codec, layout=Layout.flat(vector.size), **fields)


def summed(layout, contributions):
    total = Accumulator(layout)
    for vector, weight in contributions:
        total.add_vector(vector, weight)
    return total


def refusal(call, *arguments, **named):
    with pytest.raises(MalformedUpdate, match=r"^\w+: ") as caught:
        call(*arguments, **named)
    return caught.value.reason


def test_mean_is_weighted_by_hand():
    total = Accumulator(Layout.flat(2))
    total.add(packed([1, -8]), 3)
    total.add(packed([5, 0.5]), 1)
    assert total.mean().tolist() == [(3 * 1 + 5) / 4, (3 * -8 + 0.5) / 4]
    assert total.mean().dtype == np.float32
    assert (total.count, total.total_weight) == (2, 4)


def test_each_contribution_is_rounded_to_the_grid_by_the_documented_formula(rng):
    vectors = rng.normal(size=(5, 50)).astype(np.float32)
    weights = [1.0, 0.1, 17.0, 1 / 3, 1000.5]
    total = summed(Layout.flat(50), zip(vectors, weights, strict=True))
    for j in range(50):
        # Python floats are IEEE doubles and round() is half to even: the formula, one value at a time.
        steps = sum(round(float(v[j]) * (w * GRID)) for v, w in zip(vectors, weights, strict=True))
        exact_weight = sum(map(Fraction, weights))
        assert total.mean()[j] == np.float32(float(steps) / float(exact_weight * GRID))


finite = st.floats(-1000, 1000, width=32)
contributions = st.lists(
    st.tuples(st.lists(finite, min_size=4, max_size=4), st.floats(2**-20, 1000)), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(contributions, st.randoms(use_true_random=False), st.integers(0, 8))
def test_any_order_and_any_presumming_give_the_same_bits(contributions, random, cut):
    layout = Layout.flat(4)
    pairs = [(np.array(values, np.float32), weight) for values, weight in contributions]
    one_by_one = summed(layout, pairs)
    shuffled = random.sample(pairs, len(pairs))
    first, second = summed(layout, shuffled[:cut]), summed(layout, shuffled[cut:])
    merged = Accumulator(layout)
    merged.merge(Accumulator.from_bytes(second.to_bytes(), layout))
    merged.merge(first)
    assert merged.to_bytes() == one_by_one.to_bytes()
    assert merged.mean().tobytes() == one_by_one.mean().tobytes()


@settings(max_examples=60, deadline=None)
@given(contributions)
def test_mean_is_within_the_documented_distance_of_the_exact_mean(contributions):
    layout = Layout.flat(4)
    pairs = [(np.array(values, np.float32), weight) for values, weight in contributions]
    mean = summed(layout, pairs).mean()
    weight = sum(Fraction(w) for _, w in pairs)
    largest = max(abs(Fraction(float(v[j]))) for v, _ in pairs for j in range(4))
    for j in range(4):
        exact = sum(Fraction(float(v[j])) * Fraction(w) for v, w in pairs) / weight
        allowed = Fraction(len(pairs), 2**33) / weight + largest / 2**51
        # Rounding to float32: half a unit in the last place, 2^-24 of the value or 2^-150.
        allowed += (abs(exact) + allowed) / 2**24 + Fraction(1, 2**150)
        assert abs(Fraction(float(mean[j])) - exact) <= allowed


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2**20), 2**20, width=32), min_size=1, max_size=50))
def test_one_update_of_weight_one_comes_back_as_documented(values):
    vector = np.array(values, np.float32)
    total = Accumulator(Layout.flat(vector.size))
    total.add(packed(vector))
    error = np.abs(total.mean().astype(np.float64) - vector)
    assert error.max() <= 2.0**-33
    assert not error[np.abs(vector) >= 2.0**-9].any()


def test_the_grid_is_2_to_the_minus_32():
    vector = np.array([2.0**-32, 1.5 * 2.0**-32, 2.0**-33, 0.75 * 2.0**-32, -(2.0**-32)], np.float32)
    # Ties go to the even step: 1.5 -> 2, 0.5 -> 0.
    total = summed(Layout.flat(5), [(vector, 1)])
    assert (total.mean() * np.float32(GRID)).tolist() == [1, 2, 0, 1, -1]


def test_values_beyond_one_internal_piece_are_all_added(rng):
    vector = rng.integers(-100, 100, 150_001).astype(np.float32)
    total = summed(Layout.flat(150_001), [(vector, 2), (2 * vector, 1)])
    assert np.array_equal(total.mean(), (vector * np.float32(4)) / np.float32(3))


def test_total_weight_is_exact_where_floats_are_not():
    total = summed(Layout.flat(1), [(np.zeros(1, np.float32), 0.1)] * 10)
    assert sum([0.1] * 10) != 1.0
    assert total.total_weight == 10 * Fraction(0.1)


def test_add_equals_add_vector_of_the_decoded_packet(rng):
    layout, vector = Layout.flat(1000), rng.normal(size=1000).astype(np.float32)
    packet = encode(vector, Int8(rounding="stochastic"), layout=layout, key=3)
    from_packet, from_vector = Accumulator(layout), Accumulator(layout)
    from_packet.add(packet, 2.5)
    scales = np.frombuffer(packet, "<f4", 4, HEADER).repeat(256)[:1000]
    levels = np.frombuffer(packet, np.int8, offset=HEADER + 16)
    from_vector.add_vector(levels * scales, 2.5)
    assert from_packet.to_bytes() == from_vector.to_bytes()


def test_an_empty_layout_and_an_empty_accumulator():
    total = Accumulator(Layout.flat(0))
    with pytest.raises(ValueError, match=r"mean of no updates.*skip the round"):
        total.mean()
    total.add(packed([]), 2)
    assert total.mean().shape == (0,)
    assert Accumulator.from_bytes(total.to_bytes(), Layout.flat(0)).count == 1


# --- refusals change nothing ---


@pytest.fixture
def started():
    total = Accumulator(Layout.flat(2))
    total.add(packed([1, 2], round=5), 3)
    return total


@pytest.mark.parametrize(
    "weight", [0, -1, 0.0, float("nan"), float("inf"), 2**20 + 1, 2.0**-21, 10**400, True, None, "1", [1], 1j]
)
def test_a_bad_weight_is_refused(started, weight):
    before = started.to_bytes()
    assert refusal(started.add, packed([1, 2]), weight) == "weight"
    assert refusal(started.add_vector, np.ones(2, np.float32), weight) == "weight"
    assert started.to_bytes() == before


@pytest.mark.parametrize("weight", [2**20, 2.0**-20, np.float32(0.5), np.int64(3)])
def test_weights_at_the_limits_and_of_numpy_are_taken(weight):
    total = summed(Layout.flat(1), [(np.ones(1, np.float32), weight)])
    assert total.total_weight == Fraction(float(weight))
    assert total.mean().tolist() == [1.0]


def test_a_bad_packet_changes_nothing(started):
    before = started.to_bytes()
    good = packed([1, 2], round=5)
    assert refusal(started.add, good[:-1]) == "length"
    assert refusal(started.add, good, round=6) == "round"
    assert refusal(started.add, good, base=b"b" * 16) == "base"
    assert refusal(started.add, good, kind="weights") == "kind"
    assert refusal(started.add, packed([1, 2, 3])) == "layout"
    assert refusal(started.add, None) == "type"
    assert started.to_bytes() == before
    started.add(good, round=5, base=b"", kind="delta")
    assert started.count == 2


@pytest.mark.parametrize(("value", "weight"), [(2.0**21, 1), (-(2.0**21), 1), (2.0, 2**20), (3e38, 2.0**-20)])
def test_a_contribution_that_is_too_large_is_refused(started, value, weight):
    before = started.to_bytes()
    assert refusal(started.add, packed([0, value]), weight) == "overflow"
    assert started.to_bytes() == before


def test_the_largest_contribution_is_exact():
    largest = np.nextafter(np.float32(2**21), np.float32(0))
    total = summed(Layout.flat(2), [(np.array([largest, -largest]), 1)])
    assert total.mean().tolist() == [largest, -largest]


def test_a_sum_is_refused_before_it_could_wrap():
    total = Accumulator(Layout.flat(2))
    for sign in [1, -1] * 512:  # the bound counts magnitudes, whatever cancels: 1024 * 2^20.99 < 2^31
        total.add_vector(np.array([sign * 2.0**20, 0], np.float32), 1.999)
    before = total.to_bytes()
    for _ in range(2):
        assert refusal(total.add_vector, np.array([2.0**20, 0], np.float32), 1.999) == "overflow"
    assert total.to_bytes() == before
    total.add_vector(np.array([1, 0], np.float32))
    assert total.mean()[0] == np.float32(1 / float(1024 * Fraction(1.999) + 1))


def test_a_sum_next_to_the_limit_is_still_exact():
    total = Accumulator(Layout.flat(1))
    for _ in range(2047):
        total.add_vector(np.array([2.0**20], np.float32))
    total.add_vector(np.array([2.0**20 - 1], np.float32))
    assert total.to_bytes()[HEADER:] == struct.pack("<q", (2**31 - 1) * GRID)
    assert refusal(total.add_vector, np.array([1], np.float32)) == "overflow"  # exactly 2^31


def test_merging_past_the_limit_is_refused_and_changes_nothing():
    half = summed(Layout.flat(1), [(np.array([2.0**20], np.float32), 1)] * 1024)
    before = half.to_bytes()
    assert refusal(half.merge, half) == "overflow"
    assert half.to_bytes() == before


def test_vectors_that_are_not_finite_are_refused(started):
    for value in (np.nan, np.inf, -np.inf):
        assert refusal(started.add_vector, np.array([0, value], np.float32)) == "nonfinite"


def test_accumulators_of_two_layouts_do_not_merge(started):
    with pytest.raises(ValueError, match="two layouts cannot be merged"):
        started.merge(Accumulator(Layout.flat(3)))


# --- bytes ---


def signed(data):
    """Accumulator bytes with a checksum to match."""
    return data[:64] + struct.pack("<Q", xxhash.xxh3_64_intdigest(data[:64] + data[72:])) + data[72:]


def forged(data, offset, replacement):
    return signed(data[:offset] + replacement + data[offset + len(replacement) :])


def test_bytes_are_as_documented():
    total = summed(Layout.flat(2), [(np.array([1, -0.5], np.float32), 2), (np.array([0, 0.25], np.float32), 0.5)])
    fields = struct.pack("<4sHHQ", b"FQAC", 1, 0, 2) + Layout.flat(2).digest
    fields += struct.pack("<Q", 2 * GRID + GRID // 8) + int(2.5 * 2**72).to_bytes(24, "little")
    body = struct.pack("<qq", 2 * GRID, -GRID + GRID // 8)
    checksum = struct.pack("<Q", xxhash.xxh3_64_intdigest(fields + body))
    assert total.to_bytes() == fields + checksum + body


def test_a_flip_of_any_byte_is_refused(started):
    data = bytearray(started.to_bytes())
    for at in range(len(data)):
        data[at] ^= 0xFF
        assert refusal(Accumulator.from_bytes, data, Layout.flat(2)) in {"magic", "version", "checksum"}
        data[at] ^= 0xFF
    assert Accumulator.from_bytes(data, Layout.flat(2)).to_bytes() == data


@pytest.mark.parametrize(
    ("offset", "replacement", "reason"),
    [
        (0, b"FEDQ", "magic"),
        (4, b"\x02", "version"),
        (6, b"\x01", "reserved"),
        (8, struct.pack("<Q", 0), "weight"),  # a weight of nobody
        (16, bytes(16), "layout"),
        (32, struct.pack("<Q", 2**63), "overflow"),
        (32, struct.pack("<Q", 6 * GRID - 1), "overflow"),  # below the largest sum
        (40, bytes(24), "weight"),
        (40, b"\xff" * 24, "weight"),
        (72, struct.pack("<q", 7 * GRID), "overflow"),
        (72, struct.pack("<q", -(2**63)), "overflow"),
    ],
)
def test_forged_bytes_have_their_reason(started, offset, replacement, reason):
    data = started.to_bytes()  # sums 3 and 6, bound 6, weight 3
    assert refusal(Accumulator.from_bytes, forged(data, offset, replacement), Layout.flat(2)) == reason


def test_bytes_of_another_length_or_type_are_refused(started):
    data = started.to_bytes()
    assert refusal(Accumulator.from_bytes, data[:-1], Layout.flat(2)) == "length"
    assert refusal(Accumulator.from_bytes, data + b"\0", Layout.flat(2)) == "trailing"
    assert refusal(Accumulator.from_bytes, None, Layout.flat(2)) == "type"
    assert refusal(Accumulator.from_bytes, memoryview(data * 2)[::2], Layout.flat(2)) == "type"


def test_a_restored_accumulator_goes_on_where_it_was(started):
    restored = Accumulator.from_bytes(started.to_bytes(), Layout.flat(2))
    for total in (started, restored):
        total.add_vector(np.array([3, 4], np.float32), 1)
    assert restored.to_bytes() == started.to_bytes()
    assert restored.mean().tolist() == [1.5, 2.5]


def test_float32_packets_reproduce_a_plain_average(rng):
    vectors = rng.normal(size=(10, 500)).astype(np.float32)
    counts = rng.integers(1, 700, 10)
    total = Accumulator(Layout.flat(500))
    for vector, count in zip(vectors, counts, strict=True):
        total.add(packed(vector, Float32()), int(count))
    plain = np.average(vectors.astype(np.float64), axis=0, weights=counts)
    # Ten roundings to the grid over the total weight, then float32.
    assert np.abs(total.mean() - plain).max() <= 10 * 2.0**-33 / counts.sum() + np.abs(plain).max() * 2.0**-23


def test_more_updates_than_the_count_holds_are_refused(started):
    """Of foreign bytes alone: else `to_bytes` would fail when a round ends. Found by `make fuzz`."""
    count = 2**64 - 1
    data = forged(started.to_bytes(), 8, struct.pack("<Q", count))
    full = Accumulator.from_bytes(forged(data, 40, (count * 2**72).to_bytes(24, "little")), Layout.flat(2))
    before = full.to_bytes()
    assert refusal(full.add, packed([0, 0])) == "overflow"
    assert refusal(full.add_vector, np.zeros(2, np.float32)) == "overflow"
    assert refusal(full.merge, started) == "overflow"
    assert refusal(started.merge, full) == "overflow"
    assert full.to_bytes() == before
