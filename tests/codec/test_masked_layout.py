"""What a mask keeps: the layout of it, there and back, and what a packet over it costs."""

import numpy as np
import pytest

from fedq.codec import Accumulator, Int8, Layout, MalformedUpdate, MaskedLayout, Segment, decode, encode

LAYOUT = Layout([Segment("norm", (4,)), Segment("weight", (20, 20)), Segment("steps", (), "int64", role="local")])


@pytest.fixture
def every_tenth():
    """Of the weight's 400 values those at 0, 10, ..., 390; all of the norm."""
    mask = np.ones(404, bool)
    mask[4:] = np.arange(400) % 10 == 0
    return MaskedLayout(LAYOUT, mask)


@pytest.mark.parametrize("mask", [None, np.ones(404, bool)])
def test_without_pruned_values_all_stays_as_it_is(mask):
    kept, vector = MaskedLayout(LAYOUT, mask), np.arange(404, dtype=np.float32)
    assert kept.layout is LAYOUT
    assert kept.gather(vector) is kept.scatter(vector) is vector
    assert kept.packet(3) == b""
    assert MaskedLayout.from_packet(b"", LAYOUT, round=3).layout is LAYOUT


def test_a_pruned_segment_is_flat_and_as_long_as_what_is_kept(every_tenth):
    shapes = [(s.name, s.shape) for s in every_tenth.layout.averaged]
    assert shapes == [("norm", (4,)), ("weight", (40,))]
    assert every_tenth.layout.size == 44


def test_kept_values_are_gathered_in_their_order(every_tenth):
    gathered = every_tenth.gather(np.arange(404, dtype=np.float32))
    assert gathered.tolist() == [0, 1, 2, 3, *range(4, 404, 10)]


def test_what_is_scattered_back_is_zero_where_it_is_pruned(every_tenth):
    vector = every_tenth.scatter(np.arange(1, 45, dtype=np.float32))
    assert vector[:4].tolist() == [1, 2, 3, 4]
    assert vector[4::10].tolist() == list(range(5, 45))
    assert np.count_nonzero(vector) == 44


def test_masks_of_as_many_values_have_different_layouts(every_tenth):
    other = MaskedLayout(LAYOUT, np.append(every_tenth.mask[:4], np.roll(every_tenth.mask[4:], 1)))
    assert other.layout.size == every_tenth.layout.size
    assert other.layout.digest != every_tenth.layout.digest


def test_a_packet_under_another_mask_is_refused(every_tenth):
    other = MaskedLayout(LAYOUT, np.append(every_tenth.mask[:4], np.roll(every_tenth.mask[4:], 1)))
    packet = encode(np.ones(44, np.float32), "int8", layout=other.layout)
    with pytest.raises(MalformedUpdate, match=r"^layout: "):
        Accumulator(every_tenth.layout).add(packet)


def test_an_int8_packet_of_a_tenth_is_less_than_15_percent_of_the_dense_one():
    """784 x 128 weights: 100,352 levels and 392 scales against 10,035 and 40."""
    layout = Layout([Segment("weight", (128, 784)), Segment("bias", (128,))])
    mask = np.ones(layout.size, bool)
    mask[:100_352] = np.arange(100_352) % 10 == 0
    dense, sparse = np.ones(layout.size, np.float32), MaskedLayout(layout, mask)
    packet = encode(sparse.gather(dense), Int8(block=256), layout=sparse.layout)
    assert len(packet) < 0.15 * len(encode(dense, Int8(block=256), layout=layout))
    assert sparse.scatter(decode(packet, sparse.layout)).sum() == pytest.approx(10_036 + 128)


@pytest.mark.parametrize("mask", [np.zeros(404, bool), np.zeros(404, np.uint8), np.zeros(7, bool)])
def test_a_mask_of_another_kind_is_refused(mask):
    if mask.shape == (404,) and mask.dtype == bool:
        assert MaskedLayout(LAYOUT, mask).layout.size == 0
    else:
        with pytest.raises(ValueError, match="must be bool of shape"):
            MaskedLayout(LAYOUT, mask)
