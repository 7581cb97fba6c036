"""topk and randk: which values are kept, where they say they stand, and what a reader refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq.codec import Layout, MalformedUpdate, RandK, Segment, TopK, decode, elias_fano, encode, peek
from fedq.codec.sparse import smallest


def decoded(vector, codec, key=0):
    layout = Layout.flat(vector.size)
    return decode(encode(vector, codec, layout=layout, key=key), layout)


def test_topk_keeps_the_largest_magnitudes_and_nothing_else(rng):
    x = rng.normal(size=1000).astype(np.float32)
    kept = np.flatnonzero(decoded(x, TopK(fraction=0.05)))
    assert set(kept) == set(np.argsort(-np.abs(x))[:50])


def test_topk_takes_the_first_of_equal_magnitudes():
    x = np.tile(np.array([1, -1], np.float32), 150)
    assert np.flatnonzero(decoded(x, TopK(fraction=0.01))).tolist() == [0, 1, 2]


def test_kept_values_are_int8(rng):
    x = rng.normal(size=1000).astype(np.float32)
    back = decoded(x, TopK(fraction=0.1))
    kept = back != 0
    assert np.abs(back - x)[kept].max() <= 0.5001 * np.abs(x).max() / 127


def test_the_fraction_is_of_each_segment_and_at_least_one_value():
    layout = Layout([Segment("large", (1000,)), Segment("least", (256,)), Segment("tiny", (3,))])
    x = np.arange(1, layout.size + 1, dtype=np.float32)
    back = decode(encode(x, TopK(fraction=0.001), layout=layout), layout)
    assert np.flatnonzero(back).tolist() == [999, 1255, 1256, 1257, 1258]
    assert back[1256:].tolist() == x[1256:].tolist()  # verbatim, as under every codec


def test_randk_keeps_values_that_the_seed_picks_and_sends_no_index(rng):
    x = (rng.normal(size=1000) + 10).astype(np.float32)
    layout = Layout.flat(1000)
    packets = [encode(x, RandK(fraction=0.1, error_feedback=True), layout=layout, key=key) for key in (1, 2)]
    assert {len(packet) for packet in packets} == {72 + 4 + 100}
    picked = [set(np.flatnonzero(decode(packet, layout))) for packet in packets]
    assert [len(p) for p in picked] == [100, 100]
    assert len(picked[0] & picked[1]) < 40  # 10 by chance, with a deviation of 3
    assert peek(packets[0]).seed != peek(packets[1]).seed


def test_randk_is_unbiased_and_with_feedback_sends_values_as_they_are():
    x = np.linspace(1, 2, 512, dtype=np.float32)
    k, many = 128, 1000
    mean = np.mean([decoded(x, RandK(fraction=0.25), key) for key in range(many)], axis=0)
    # A value is 4x with probability 1/4: deviation sqrt(3) x, so the mean strays by 6 sqrt(3 / many) x at most.
    assert np.abs(mean / x - 1).max() < 6 * np.sqrt(3 / many) + 0.01
    kept = decoded(x, RandK(fraction=0.25, error_feedback=True))
    assert np.count_nonzero(kept) == k
    assert np.abs(kept - x)[kept != 0].max() < 0.01


def test_every_value_is_picked_equally_often():
    picks = sum(np.abs(decoded(np.ones(300, np.float32), RandK(fraction=0.1), key)) > 0 for key in range(1000))
    # Binomial of 1,000 and 1/10: 100 with a deviation of 9.5.
    assert np.abs(picks - 100).max() < 6 * 9.5


def test_randk_refuses_what_its_factor_makes_infinite():
    with pytest.raises(
        ValueError, match=r"a value times 100 exceeds float32: use error_feedback=true or a larger fraction"
    ):
        encode(np.full(1000, 1e37, np.float32), RandK(fraction=0.01), layout=Layout.flat(1000))


@pytest.mark.parametrize("fraction", [0, -1, 1.1, 1e-7, np.nan, np.inf, "0.1", True, None])
@pytest.mark.parametrize("codec", [TopK, RandK])
def test_a_fraction_that_is_none_is_refused(codec, fraction):
    with pytest.raises(ValueError, match=r"codec\.fraction=.*: must be a number 1e-06\.\.1; try 0\.01"):
        codec(fraction=fraction)


@pytest.mark.parametrize("codec", [TopK, RandK])
@pytest.mark.parametrize(
    "options", [{"error_feedback": 1}, {"entropy": None}, {"block": 15}, {"rounding": "lloyd_max"}]
)
def test_an_option_that_is_none_is_refused(codec, options):
    with pytest.raises(ValueError, match=rf"codec\.{next(iter(options))}="):
        codec(**options)


@pytest.mark.parametrize("codec", [TopK, RandK])
def test_options_are_kept_and_come_back_from_the_header(codec):
    told = codec(0.3, block=64, rounding="stochastic", error_feedback=True, entropy=True)
    assert (told.block, told.rounding, told.error_feedback, told.entropy) == (64, "stochastic", True, True)
    assert told.fraction == float(np.float32(0.3)) != 0.3
    assert peek(encode(np.zeros(300, np.float32), told, layout=Layout.flat(300))).build_codec() == told
    assert (codec().block, codec().rounding, codec().error_feedback, codec().entropy) == (256, "nearest", False, False)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
def test_smallest_is_a_stable_sort_cut_short(keys, data):
    keys, count = np.array(keys, np.uint32), data.draw(st.integers(1, len(keys)))
    assert smallest(keys, count).tolist() == sorted(np.argsort(keys, kind="stable")[:count].tolist())


# --- places ---


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_places_come_back(data):
    n = data.draw(st.integers(1, 3000))
    places = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=min(n, 200))))
    packed = np.zeros(elias_fano.num_bytes(n, len(places)), np.uint8)
    elias_fano.write(np.array(places), n, packed)
    assert elias_fano.read(packed, n, len(places)).tolist() == places


@pytest.mark.parametrize(("n", "k"), [(100_000, 1000), (100_000, 10_000), (1_000_000, 1000)])
def test_places_cost_little_more_than_their_entropy(n, k):
    p = k / n
    entropy = n * (-p * np.log2(p) - (1 - p) * np.log2(1 - p))
    assert 8 * elias_fano.num_bytes(n, k) < 1.13 * entropy


def test_places_worked_by_hand():
    # n = 10, k = 2: l = floor(log2 5) = 2 low bits; 2 + (9 >> 2) = 4 bits of bitmap. 3 = 0|11, 6 = 1|10.
    packed = np.zeros(elias_fano.num_bytes(10, 2), np.uint8)
    elias_fano.write(np.array([3, 6]), 10, packed)
    assert packed.tolist() == [0b1011, 0b0101]


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        ([0b1011, 0b0001], "1 indices: must be 2"),
        ([0b1011, 0b0111], "3 indices: must be 2"),
        ([0b1011, 0b10101], "bits after the last index"),
        ([0b11011, 0b0101], "bits after the last index"),
        ([0b1111, 0b0011], "repeated"),  # 3 and 3
        ([0b1011, 0b0011], "repeated or out of range"),  # 3, then 2
        ([0b1011, 0b1010], "out of range"),  # 7 and 10
    ],
)
def test_places_that_no_writer_makes_are_refused(packed, words):
    with pytest.raises(MalformedUpdate, match=words) as caught:
        elias_fano.read(np.array(packed, np.uint8), 10, 2)
    assert caught.value.reason == "indices"


def test_an_index_beyond_the_vector_is_refused_in_a_packet():
    from tests.codec.test_codec_packet import forged

    layout = Layout.flat(257)  # 1 of 257 values: 8 low bits and a bitmap of 2
    packet = encode(np.ones(257, np.float32), TopK(fraction=1e-6), layout=layout)
    assert decode(forged(packet, 76, b"\x00\x02"), layout)[256] == 1  # the last value
    with pytest.raises(MalformedUpdate, match="out of range"):
        decode(forged(packet, 76, b"\x01\x02"), layout)
