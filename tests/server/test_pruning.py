"""Which weights go, when, and that none comes back; all on vectors small enough to compute by hand."""

import numpy as np
import pytest
import torch
from hand_made import LAYOUT, START, make_strategy

from fedq import codec
from fedq.codec import Accumulator, Int8, Layout, MaskedLayout, Segment, Sign
from fedq.flower import wire
from fedq.server import Broadcast, Downlink, Pruning, RoundAggregate
from fedq.server.pruning import Pruner, prune, zeros

PRUNING = Pruning(("weight",), 0.9, begin=2, end=6)
SMALL = Layout([Segment("w", (16, 16)), Segment("b", (2,)), Segment("v", (20, 20))])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- the schedule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("round", "sparsity"),
    [
        (0, 0.0),
        (2, 0.0),
        (3, 0.9 * (1 - 0.75**3)),  # 0.5203125
        (4, 0.9 * 7 / 8),  # half the way: 0.7875
        (5, 0.9 * 63 / 64),
        (6, 0.9),
        (100, 0.9),
    ],
)
def test_the_sparsity_rises_by_a_cubic(round, sparsity):
    assert PRUNING.sparsity_after(round) == pytest.approx(sparsity, abs=1e-15)


@pytest.mark.parametrize(("begin", "end"), [(3, 3), (4, 3), (-1, 3)])
def test_pruning_that_ends_before_it_begins_is_refused(begin, end):
    with pytest.raises(ValueError, match="must begin before it ends"):
        Pruning(("w",), 0.5, begin, end)


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        Pruning(("w",), sparsity, 0, 1)


# --- the mask ---------------------------------------------------------------------------------------------


def pruned(weights, share, mask=None, parts=None):
    mask = np.ones(len(weights), bool) if mask is None else np.array(mask, bool)
    prune(mask, np.array(weights, np.float32), parts or [slice(0, len(weights))], share)
    return mask.astype(int).tolist()


def test_the_smallest_magnitudes_go():
    assert pruned([3, -1, 0.5, -4], 0.5) == [1, 0, 0, 1]


def test_of_equal_magnitudes_the_first_go():
    assert pruned([1, -1, 1, 2], 0.5) == [0, 0, 1, 1]


def test_the_count_is_rounded_to_the_nearest():
    assert pruned([1, 2, 3, 4], 0.6) == [0, 0, 1, 1]
    assert pruned([1, 2, 3, 4], 0.63) == [0, 0, 0, 1]


def test_one_weight_is_always_kept():
    assert pruned([1, 2, 3, 4], 0.999) == [0, 0, 0, 1]


def test_a_pruned_weight_stays_pruned_however_large_it_is_said_to_be():
    assert pruned([100, 1, 2, 3], 0.5, mask=[0, 1, 1, 1]) == [0, 0, 1, 1]


def test_a_kept_weight_that_is_zero_is_kept_where_enough_are_pruned():
    assert pruned([0, 0, 2, 3], 0.25, mask=[1, 0, 1, 1]) == [1, 0, 1, 1]


def test_less_sparsity_than_there_is_changes_nothing():
    assert pruned([1, 2, 3, 4], 0.25, mask=[0, 0, 1, 1]) == [0, 0, 1, 1]


TWO = [slice(0, 2), slice(2, 5)]


def test_what_goes_first_has_the_least_share_of_what_outlasts_it():
    # Scores: 3 * 3 / (9 + 16) = 0.36 and the last; 1 / (1 + 4 + 4) = 0.11, 4 / (4 + 4) = 0.5 and the last.
    assert pruned([3, 4, 1, 2, 2], 0.2, parts=TWO) == [1, 1, 0, 1, 1]
    assert pruned([3, 4, 1, 2, 2], 0.4, parts=TWO) == [0, 1, 0, 1, 1]
    assert pruned([3, 4, 1, 2, 2], 0.6, parts=TWO) == [0, 1, 0, 0, 1]


def test_one_weight_of_each_segment_is_always_kept():
    assert pruned([3, 4, 1, 2, 2], 0.99, parts=TWO) == [0, 1, 0, 0, 1]
    assert pruned([0, 0, 1, 2, 2], 0.99, parts=TWO) == [0, 1, 0, 0, 1]


def test_a_segment_s_scale_is_no_reason_to_keep_or_prune_it(rng):
    weights, scale = rng.normal(size=50), np.repeat([1.0, 1024.0], 25)
    parts = [slice(0, 25), slice(25, 50)]
    assert pruned(weights * scale, 0.8, parts=parts) == pruned(weights, 0.8, parts=parts)


def test_the_named_segments_together_get_the_sparsity_and_nothing_else_is_touched(rng):
    pruner = Pruner(SMALL, Pruning(("w", "b", "v"), 0.75, 0, 1))
    master = rng.normal(size=658).astype(np.float32)
    after = pruner.after(1, master)
    assert np.array_equal(after[256:258], master[256:258])  # too small to be pruned
    assert np.count_nonzero(after) == 2 + 656 / 4
    assert np.array_equal(after[after != 0], master[after != 0])
    assert pruner.sparsity == 0.75


def test_a_segment_without_a_name_on_the_list_stays_dense():
    after = Pruner(SMALL, Pruning(("v",), 0.5, 0, 1)).after(1, np.ones(658, np.float32))
    assert after[:258].all()
    assert np.count_nonzero(after[258:]) == 200


def test_until_pruning_begins_there_is_no_mask():
    pruner = Pruner(SMALL, Pruning(("w",), 0.5, 2, 4))
    master = np.ones(658, np.float32)
    assert pruner.after(2, master) is master
    assert (pruner.kept.mask, pruner.sparsity, pruner.settled) == (None, 0.0, False)


def test_a_skipped_round_is_made_up_for():
    pruner = Pruner(SMALL, Pruning(("w",), 0.5, 0, 4))
    pruner.after(9, np.ones(658, np.float32))
    assert (pruner.sparsity, pruner.settled) == (0.5, True)


def test_nothing_to_prune_is_refused():
    with pytest.raises(ValueError, match="nothing to prune"):
        Pruner(SMALL, Pruning(("b", "unknown"), 0.5, 0, 1))


def test_the_zeros_of_a_delivered_model_are_counted():
    arrays = {"w": np.eye(16, dtype=np.float32), "b": np.zeros(2, np.float32), "v": np.ones((20, 20), np.float32)}
    assert zeros(arrays, ("w", "b")) == 240 / 256
    assert zeros(arrays, ("w", "v")) == 240 / 656


# --- the strategy -----------------------------------------------------------------------------------------


def strategy(**options):
    return make_strategy(downlink=Downlink(Int8()), pruning=PRUNING, **options)


def summed(strategy, value):
    """What a round brings of one client whose update is `value` everywhere that is kept."""
    layout = strategy.kept.layout
    total = RoundAggregate(layout, {wire.UPDATE: Accumulator(layout)})
    total.sums[wire.UPDATE].add_vector(np.full(layout.size, value, np.float32))
    return total


def test_a_dense_strategy_sends_no_mask():
    broadcast = make_strategy().broadcast(START, 1, ["a"])
    assert set(broadcast.packets("a")) == {wire.MODEL}
    assert broadcast.kept(LAYOUT, 1).layout is LAYOUT


def test_until_pruning_begins_packets_are_those_of_a_dense_run():
    dense = make_strategy(downlink=Downlink(Int8()))
    assert strategy().broadcast(START, 1, ["a"]) == dense.broadcast(START, 1, ["a"])


def test_a_broadcast_brings_a_mask_and_the_weights_that_it_keeps():
    pruning = strategy()
    master = pruning.step(6, START, summed(pruning, 0.0))
    broadcast = pruning.broadcast(master, 7, ["a"])
    assert set(broadcast.packets("a")) == {wire.MODEL, wire.MASK}
    kept = broadcast.kept(LAYOUT, 7)
    assert kept.layout.size == 32 + 4
    sent = kept.scatter(codec.decode(broadcast.whole, kept.layout, kind="weights", round=7))
    assert np.array_equal(sent == 0, master == 0)
    assert broadcast.base == codec.digest(kept.gather(sent))


def test_a_broadcast_with_a_mask_comes_back_from_a_frame():
    pruning = strategy()
    broadcast = pruning.broadcast(pruning.step(6, START, summed(pruning, 0.0)), 7, ["a"])
    assert Broadcast.from_frame(broadcast.head(), broadcast.blobs()) == broadcast


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.Rprop(p, lr=0.1),
    ],
)
def test_no_server_optimizer_revives_a_pruned_weight(optimizer):
    pruning, master = strategy(optimizer=optimizer), START
    gone = np.zeros(LAYOUT.size, bool)
    for round in range(1, 12):
        master = pruning.step(round, master, summed(pruning, 1.0))
        assert not master[gone].any()
        gone |= ~(np.ones_like(gone) if pruning.kept.mask is None else pruning.kept.mask)
    assert (gone.sum(), pruning.sparsity, pruning.settled) == (288, 0.9, True)


def test_the_mean_update_has_the_shape_of_the_model():
    pruning = strategy()
    pruning.step(6, START, summed(pruning, 0.0))
    mean = pruning.kept.scatter(pruning.aggregation.mean(summed(pruning, 2.0), wire.UPDATE, round=7))
    assert mean.shape == (LAYOUT.size,)
    assert np.array_equal(mean == 0, ~pruning.kept.mask)


def test_changes_cannot_be_sent_of_a_pruned_model():
    delta = Downlink(Sign(block=256, rotate=True, error_feedback=True), "delta")
    with pytest.raises(ValueError, match="use weights"):
        make_strategy(downlink=delta, pruning=PRUNING)


def test_a_dense_strategy_tells_no_sparsity():
    assert make_strategy().sparsity is None
    assert make_strategy().settled
    assert MaskedLayout(LAYOUT).mask is None
