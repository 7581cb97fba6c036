"""An algorithm with two packets at the server: both are checked, bounded and summed, or none is."""

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from hand_made import CODEC, LAYOUT, START, update_of

from fedq import codec
from fedq.algorithms import Scaffold
from fedq.flower import private as flower
from fedq.flower import wire
from fedq.server import Broadcast, RoundAggregate, Strategy, Terms
from fedq.server.aggregation import Averaging
from fedq.server.bounding import MedianBound
from fedq.server.roster import Roster

ROSTER = Roster({"a": 11, "b": 12, "c": 13})
ALGORITHM = Scaffold()


@pytest.fixture
def strategy():
    flower.enter()
    aggregation = Averaging(CODEC, ALGORITHM.uplink, bound=MedianBound)
    return Strategy(LAYOUT, CODEC, algorithm=ALGORITHM, aggregation=aggregation, terms=Terms(clients=6))


def packet(vector, base, round=1):
    return codec.encode(vector, CODEC, layout=LAYOUT, kind="delta", round=round, base=base)


def reply(node, packets):
    request = Message(RecordDict(), dst_node_id=node, message_type=wire.TRAIN)
    return Message(wire.write_reply(wire.Reply(1, packets, 10, 0.5)), reply_to=request)


def honest(broadcast, seed):
    return {
        "update": packet(update_of(str(seed), 1), broadcast.base),
        "control": packet(10 * update_of(str(seed), 2), broadcast.base),
    }


def collected(strategy, replies, broadcast=None):
    broadcast = broadcast or strategy.broadcast(START, 1, list("abc"))
    total = strategy.collect(1, replies, list("abc"), ROSTER, broadcast)
    return strategy.settle(total, broadcast)


def test_what_the_server_keeps_is_sent_beside_the_model(strategy):
    broadcast = strategy.broadcast(START, 1, ["a"])
    assert set(broadcast.packets("a")) == {"model", "control"}
    sent = codec.decode(broadcast.beside["control"], LAYOUT, round=1, base=broadcast.base, kind="weights")
    assert not sent.any()


def test_a_broadcast_comes_back_from_a_frame(strategy):
    broadcast = strategy.broadcast(START, 1, ["a"])
    assert Broadcast.from_frame(broadcast.head(), broadcast.blobs()) == broadcast


def test_the_shared_variate_moves_by_the_share_of_clients_that_took_part(strategy):
    broadcast = strategy.broadcast(START, 1, list("abc"))
    sent = [honest(broadcast, i) for i in range(3)]
    total = collected(strategy, [reply(11 + i, packets) for i, packets in enumerate(sent)], broadcast)
    strategy.step(1, START, total)
    mean = np.mean([codec.decode(packets["control"], LAYOUT) for packets in sent], axis=0)
    np.testing.assert_allclose(strategy.state["control"], 3 / 6 * mean, atol=1e-5)


@pytest.mark.parametrize("missing", ["update", "control"])
def test_a_reply_without_one_of_the_packets_is_rejected(strategy, missing):
    broadcast = strategy.broadcast(START, 1, list("abc"))
    packets = honest(broadcast, 0)
    del packets[missing]
    assert collected(strategy, [reply(11, packets)], broadcast).reasons["missing_key"] == 1


def test_a_packet_that_the_algorithm_does_not_declare_is_rejected(strategy):
    broadcast = strategy.broadcast(START, 1, list("abc"))
    packets = {**honest(broadcast, 0), "extra": b"x"}
    assert collected(strategy, [reply(11, packets)], broadcast).reasons["extra_key"] == 1


@pytest.mark.hostile
@pytest.mark.parametrize("bad", ["update", "control"])
def test_one_bad_packet_takes_the_other_with_it(strategy, bad):
    """The sums are to the bit what they would be without that client."""
    broadcast = strategy.broadcast(START, 1, list("abc"))
    good = [reply(11 + i, honest(broadcast, i)) for i in (1, 2)]
    lie = {**honest(broadcast, 0), bad: packet(update_of("0", 1), b"c" * 16)}
    lied_to = collected(strategy, [reply(11, lie), *good], broadcast)
    without = collected(strategy, good, broadcast)
    assert lied_to.reasons == {"packet_base": 1}
    for name in ("update", "control"):
        assert lied_to.sums[name].to_bytes() == without.sums[name].to_bytes()


@pytest.mark.hostile
def test_each_packet_has_a_bound_of_its_own(strategy):
    """A long control variate is shortened, though the update beside it is of the usual length."""
    broadcast = strategy.broadcast(START, 1, list("abc"))
    sent = [honest(broadcast, i) for i in range(3)]
    sent[0]["control"] = packet(1e6 * update_of("0", 2), broadcast.base)
    total = collected(strategy, [reply(11 + i, packets) for i, packets in enumerate(sent)], broadcast)
    assert total.clipped == ["a"]
    others = max(np.linalg.norm(codec.decode(packets["control"], LAYOUT)) for packets in sent[1:])
    assert np.linalg.norm(total.sums["control"].mean()) < 2 * others


def test_shares_of_two_workers_give_the_bits_of_one(strategy):
    broadcast = strategy.broadcast(START, 1, list("abc"))
    replies = [reply(11 + i, honest(broadcast, i)) for i in range(3)]
    whole = strategy.collect(1, replies, list("abc"), ROSTER, broadcast)
    merged = RoundAggregate(LAYOUT)
    for part, names in ((replies[2:], ["c"]), (replies[:2], ["a", "b"])):
        share = strategy.collect(1, part, names, ROSTER, broadcast)
        merged.merge(RoundAggregate.from_bytes(share.to_bytes(), LAYOUT))
    for total in (whole, merged):
        strategy.settle(total, broadcast)
    for name in ("update", "control"):
        assert merged.sums[name].to_bytes() == whole.sums[name].to_bytes()
    assert merged.reaches == whole.reaches
