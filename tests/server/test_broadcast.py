"""What clients are sent, against clients that keep only what they were sent."""

import json

import numpy as np
import pytest
from hand_made import LAYOUT, START, make_strategy, update_of

from fedq import codec
from fedq.codec import Float16, Float32, Int2, Int4, Int8, RandK, Sign, TopK
from fedq.flower import wire
from fedq.server import Broadcast, Downlink, QuantizedFedAvg
from fedq.server.broadcast import FIRST, NO_WEIGHTS, Broadcaster, downlink_for

WEIGHTS = Downlink(Int8())
DELTA = Downlink(Sign(block=256, rotate=True, error_feedback=True), "delta")


def master_of(round):
    """A model that every round changes a little."""
    return sum((update_of("server", past) for past in range(1, round)), START).astype(np.float32)


class Federation:
    """A broadcaster, and what its clients hold: each reads its own packets and nothing else."""

    def __init__(self, downlink=DELTA):
        self.broadcaster, self.round, self.master = Broadcaster(LAYOUT, downlink, seed=7), 0, START
        self.held, self.sent = {}, {}

    def send(self, cohort, *, answers=None, master=None):
        """One round: all of the cohort read what they are sent; `answers`: whose replies are accepted (None: all)."""
        self.round += 1
        self.master = master_of(self.round) if master is None else master
        broadcast = self.broadcaster.make(self.master, self.round, list(cohort))
        self.sent = {client: wire.model_of(broadcast.packets(client)) for client in cohort}
        for client, told in self.sent.items():
            self.held[client] = self._read(self.held.get(client), told)
        self.broadcaster.note(self.round, cohort, cohort if answers is None else answers)
        return broadcast

    def _read(self, weights, told):
        if isinstance(told, bytes):
            return codec.decode(told, LAYOUT, round=self.round, kind="weights")
        for delta in told:
            weights = weights + codec.decode(delta, LAYOUT, base=codec.digest(weights), kind="delta")
        return weights

    def digests(self, cohort):
        return {codec.digest(self.held[client]) for client in cohort}


# --- weights ----------------------------------------------------------------------------------------------


def test_weights_are_one_packet_for_all_whoever_answered():
    federation = Federation(WEIGHTS)
    for answers in ("ab", "", "a"):
        broadcast = federation.send("abc", answers=answers)
        assert set(federation.sent.values()) == {broadcast.whole}
        assert (broadcast.deltas, broadcast.behind) == ((), {})


def test_the_base_of_weights_is_what_they_decode_to():
    federation = Federation(WEIGHTS)
    broadcast = federation.send("a")
    assert codec.digest(codec.decode(broadcast.whole, LAYOUT)) == broadcast.base
    assert broadcast.base != codec.digest(federation.master)


def test_a_snapshot_of_weights_is_what_was_broadcast():
    broadcaster = Broadcaster(LAYOUT, WEIGHTS, seed=7)
    assert broadcaster.whole(START, 3) == broadcaster.make(START, 3, ["a"])


# --- changes ----------------------------------------------------------------------------------------------


def test_changes_begin_from_weights_of_half_int8_s_bytes():
    header = codec.peek(Federation().send("ab").whole)
    assert (header.kind, header.build_codec()) == ("weights", FIRST)


def test_clients_that_missed_nothing_get_one_and_the_same_delta_and_no_weights():
    federation = Federation()
    federation.send("ab")
    broadcast = federation.send("ab")
    assert federation.sent == {"a": list(broadcast.deltas), "b": list(broadcast.deltas)}
    assert len(broadcast.deltas) == 1
    assert broadcast.whole == b""
    assert codec.peek(broadcast.deltas[0]).build_codec() == DELTA.codec


@pytest.mark.parametrize("missed", [0, 1, 2, 5])
def test_a_client_that_missed_rounds_gets_as_many_deltas_more_and_ends_where_the_others_are(missed):
    federation = Federation()
    federation.send("ab")
    for _ in range(missed):
        federation.send("a")
    broadcast = federation.send("ab")
    assert [len(federation.sent[client]) for client in "ab"] == [1, 1 + missed]
    assert federation.digests("ab") == {broadcast.base}


def test_an_unknown_client_gets_the_held_weights_bit_for_bit():
    federation = Federation()
    federation.send("a")
    broadcast = federation.send("an")
    assert codec.peek(federation.sent["n"]).codec == "float32"
    assert federation.digests("an") == {broadcast.base}


def test_a_client_whose_last_reply_was_not_accepted_gets_weights():
    """It may have read what it was sent, or not: nobody knows what it holds."""
    federation = Federation()
    federation.send("ab")
    federation.send("ab", answers="a")
    broadcast = federation.send("ab")
    assert (type(federation.sent["a"]), type(federation.sent["b"])) == (list, bytes)
    assert federation.digests("ab") == {broadcast.base}


def test_a_client_that_was_given_weights_and_answered_gets_changes_again():
    federation = Federation()
    federation.send("ab")
    federation.send("ab", answers="a")
    federation.send("ab")
    federation.send("ab")
    assert [len(federation.sent[client]) for client in "ab"] == [1, 1]


def test_strangers_get_the_exact_weights_and_nobody_else_begins_anew():
    federation = Federation()
    federation.send("ab")
    broadcast = federation.send("cd")
    assert codec.peek(broadcast.whole).codec == "float32"
    assert federation.digests("cd") == {broadcast.base}
    broadcast = federation.send("ac")
    assert [type(federation.sent[client]) for client in "ac"] == [list, list]
    assert federation.digests("ac") == {broadcast.base}


def test_where_nobody_is_known_to_hold_anything_all_begins_anew():
    strategy = make_strategy(downlink=DELTA)
    master = np.ones(LAYOUT.size, np.float32)
    strategy.broadcast(master, 1, ["a"])
    strategy.note(1, ["a"], [])
    broadcast = strategy.broadcast(master, 2, ["a"])
    assert broadcast.deltas == ()
    assert codec.peek(broadcast.whole).build_codec() == FIRST


def test_changes_in_a_fine_codec_begin_from_weights_in_it():
    strategy = make_strategy(downlink=Downlink(Float32(), "delta"))
    broadcast = strategy.broadcast(np.ones(LAYOUT.size, np.float32), 1, ["a"])
    assert codec.peek(broadcast.whole).codec == "float32"


def test_deltas_that_together_are_longer_than_the_weights_are_dropped():
    """An int8 delta has 420 bytes and float32 weights have 1368: three deltas are kept."""
    federation = Federation(Downlink(Int8(error_feedback=True), "delta"))
    assert codec.packed_size("int8", LAYOUT) == 72 + 4 * (2 + 4) + 320
    federation.send("abc")
    for _ in range(2):
        federation.send("a")
    federation.send("ab")
    assert len(federation.sent["b"]) == 3
    broadcast = federation.send("abc")
    assert len(broadcast.deltas) == 3
    assert [type(federation.sent[client]) for client in "abc"] == [list, list, bytes]
    assert federation.digests("abc") == {broadcast.base}


def test_one_delta_is_kept_however_long_it_is():
    federation = Federation(Downlink(Float32(), "delta"))
    for _ in range(3):
        broadcast = federation.send("ab")
    assert len(broadcast.deltas) == 1
    assert federation.digests("ab") == {broadcast.base}


@pytest.mark.parametrize("lossy", [Int8(), Int2(rotate=True, block=256), Sign(rotate=True, block=256)])
def test_a_model_that_rests_is_reached(lossy):
    """What a delta lost is in the next one: at least half of the squared distance goes in each round.

    Of Gaussian values sign with feedback loses 0.363 (docs/packet-format.md), the others less.
    """
    federation = Federation(Downlink(codec.with_error_feedback(lossy, True), "delta"))
    federation.send("a", master=START)
    first = np.square(federation.held["a"] - START, dtype=np.float64).sum()
    for _ in range(16):
        federation.send("a", master=START)
    left = np.square(federation.held["a"] - START, dtype=np.float64).sum()
    assert 0 < first < np.square(START, dtype=np.float64).sum() / 10
    assert left < first * 0.5**16


def test_what_deltas_lose_does_not_add_up():
    """However many rounds, a client is off by half a level of the last delta, which the next one fixes."""
    federation = Federation(Downlink(Int8(block=64, error_feedback=True), "delta"))
    federation.send("a")
    for _ in range(40):
        before = federation.held["a"]
        federation.send("a")
    half_a_level = np.abs(federation.master - before).max() / 127 / 2
    assert np.abs(federation.held["a"] - federation.master).max() <= 1.001 * half_a_level


def test_a_snapshot_is_int8_weights_and_changes_nothing_of_what_clients_hold():
    one, other = Federation(), Federation()
    for federation in (one, other):
        federation.send("a")
    snapshot = one.broadcaster.whole(one.master, 1)
    assert (codec.peek(snapshot.whole).codec, snapshot.deltas) == ("int8", ())
    assert one.send("a") == other.send("a")


# --- which codec carries what ---------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [TopK(), RandK()])
def test_a_codec_that_is_too_coarse_carries_no_weights(sparse):
    with pytest.raises(ValueError, match=rf"^downlink\.name={sparse.name}: too coarse .*; use downlink\.kind=delta"):
        Downlink(sparse)


@pytest.mark.parametrize("sparse", [TopK(error_feedback=True), RandK(error_feedback=True)])
def test_a_codec_that_drops_values_carries_changes(sparse):
    federation = Federation(Downlink(sparse, "delta"))
    federation.send("a")
    broadcast = federation.send("a")
    assert federation.digests("a") == {broadcast.base}


def test_every_codec_that_drops_values_is_named():
    assert {name for name, kind in codec.CODECS.items() if hasattr(kind, "num_kept")} < set(NO_WEIGHTS)


def test_weights_leave_nothing_to_feed_back():
    with pytest.raises(ValueError, match=r"^downlink\.error_feedback=True: .*; use downlink\.kind=delta"):
        Downlink(Int8(error_feedback=True))


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"^downlink\.kind='update': must be weights or delta"):
        Downlink(Int8(), "update")


@pytest.mark.parametrize("fine", [Float32(), Float16(), Int8(block=64, rounding="stochastic"), Int4(rotate=True)])
def test_a_fine_codec_of_the_update_is_that_of_the_model_too(fine):
    assert downlink_for(codec.with_error_feedback(fine, True)) == Downlink(fine)


@pytest.mark.parametrize("coarse", [Int2(rotate=True), Sign(), TopK(), RandK()])
def test_under_a_coarse_codec_of_the_update_the_model_travels_as_int8(coarse):
    assert downlink_for(coarse) == Downlink(Int8())


def test_clients_of_another_app_are_sent_weights_only():
    with pytest.raises(ValueError, match=r"^downlink\.kind=delta: another app.*; use weights"):
        QuantizedFedAvg(downlink=DELTA)


# --- between processes ----------------------------------------------------------------------------------


def test_a_broadcast_crosses_to_another_process():
    """A client that missed eleven rounds: the names of its packets do not sort as their numbers do."""
    federation = Federation(Downlink(TopK(0.01, error_feedback=True), "delta"))
    federation.send("ab")
    for _ in range(11):
        federation.send("a")
    broadcast = federation.send("abn")
    assert (broadcast.behind, len(broadcast.deltas)) == ({"a": 1, "b": 12}, 12)
    blobs = dict(sorted(broadcast.blobs().items()))
    assert Broadcast.from_frame(json.loads(json.dumps(broadcast.head())), blobs) == broadcast


@pytest.mark.parametrize("downlink", [WEIGHTS, DELTA])
def test_the_first_broadcast_crosses_to_another_process(downlink):
    broadcast = Federation(downlink).send("ab")
    assert Broadcast.from_frame(broadcast.head(), broadcast.blobs()) == broadcast
