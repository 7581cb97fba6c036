"""A reply that fails a check leaves no trace but its reason: the model is, to the bit, that of a round without it."""

import math
import struct

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from hand_made import LAYOUT, START, Told, forged, instead, make_strategy, run, update_of, with_records

from fedq.codec import REASONS, Float32, Layout, Segment
from fedq.flower import private as flower
from fedq.flower import wire
from fedq.server.roster import Roster
from fedq.server.round_aggregate import Accepted, Rejected

HONEST = ("0", "1", "3")
NUMBERS = {"num_examples": 12, "loss": 0.5}
BODY = 72  # where the values of a packet begin, after its header
F32 = {"codec": Float32()}


def in_place_of_packet(told):
    return RecordDict({**told.records(), "fedq.packets": ArrayRecord({"update": Array(told.update)})})


def plain_flower(told):
    """What a client of a Flower app sends that knows nothing of fedq."""
    arrays = ArrayRecord({"weight": Array(told.update[:320].reshape(20, 16))})
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 12})})


def packet(make):
    """The honest reply with another packet: `make` gets what the client would have told."""
    return lambda told: RecordDict(told.records(make(told)))


LIES = {
    # values
    "NaN": (forged(BODY + 4 * 5, struct.pack("<f", math.nan)), "packet_nonfinite"),  # among the biases
    "infinity": (forged(BODY + 4 * 6, struct.pack("<f", math.inf)), "packet_nonfinite"),
    "minus infinity": (forged(BODY + 4 * 8, struct.pack("<f", -math.inf)), "packet_nonfinite"),
    "NaN scale": (forged(BODY, struct.pack("<f", math.nan)), "packet_scale"),
    "infinite scale": (forged(BODY, struct.pack("<f", math.inf)), "packet_scale"),
    "negative scale": (forged(BODY, struct.pack("<f", -1.0)), "packet_scale"),
    "level -128": (forged(BODY + 4 * 9, b"\x80"), "packet_level"),
    # weights
    "NaN weight": (instead(num_examples=math.nan), "weight"),
    "infinite weight": (instead(num_examples=math.inf), "weight"),
    "negative weight": (instead(num_examples=-12), "weight"),
    "minus infinite weight": (instead(num_examples=-math.inf), "weight"),
    "zero weight": (instead(num_examples=0), "weight"),
    "minus zero weight": (instead(num_examples=-0.0), "weight"),
    "weight below the accumulator's grid": (instead(num_examples=1e-300), "packet_weight"),
    "list of weights": (with_records(metrics=MetricRecord({"num_examples": [12, 12], "loss": 0.5})), "wrong_type"),
    "NaN loss": (instead(loss=math.nan), "metric"),
    "infinite loss": (instead(loss=-math.inf), "metric"),
    # shapes and dtypes
    "wrong shape": (instead(layout=Layout.flat(7), update=np.zeros(7, np.float32)), "packet_layout"),
    "broadcastable shape": (instead(layout=Layout.flat(1), update=np.ones(1, np.float32)), "packet_layout"),
    "as many values in another shape": (
        instead(layout=Layout([Segment("weight", (16, 20)), Segment("bias", (4,))])),
        "packet_layout",
    ),
    "the right layout over too few values": (
        forged(16, LAYOUT.digest, layout=Layout.flat(7), update=np.zeros(7, np.float32)),
        "packet_length",
    ),
    "a dtype that does not exist": (forged(6, b"\x09"), "packet_codec"),
    "a good packet in another codec than was asked for": (instead(**F32), "packet_codec"),
    "float16 bytes said to be int8": (forged(6, b"\x03", codec="float16"), "packet_options"),
    "options that int8 does not have": (forged(52, b"\x09"), "packet_options"),
    # keys
    "unknown key": (with_records(reply=ConfigRecord({"round": 1, "note": "x"})), "extra_key"),
    "unknown record": (with_records(extra=ConfigRecord({"x": 1})), "extra_key"),
    "unknown packet": (with_records(packets=ConfigRecord({"update": b"", "control": b""})), "extra_key"),
    "missing packet": (with_records(packets=ConfigRecord()), "missing_key"),
    "missing record": (with_records(packets=None), "missing_key"),
    "missing weight": (with_records(metrics=MetricRecord({"loss": 0.5})), "missing_key"),
    "missing metrics": (with_records(metrics=None), "missing_key"),
    "missing round": (with_records(reply=ConfigRecord()), "missing_key"),
    "empty reply": (lambda told: RecordDict(), "missing_key"),
    "extra metric": (with_records(metrics=MetricRecord({**NUMBERS, "age": 41})), "extra_key"),
    "metrics in a record of another kind": (with_records(metrics=ConfigRecord(NUMBERS)), "wrong_type"),
    # bytes
    "no bytes": (packet(lambda told: b""), "packet_length"),
    "noise": (packet(lambda told: bytes(range(256))), "packet_magic"),
    "a pickle": (packet(lambda told: b"\x80\x04\x95" + bytes(200)), "packet_magic"),
    "cut bytes": (packet(lambda told: told.packet()[:-1]), "packet_length"),
    "trailing bytes": (packet(lambda told: told.packet() + b"\0"), "packet_trailing"),
    "a flipped bit": (packet(lambda told: told.packet()[:-1] + bytes([told.packet()[-1] ^ 1])), "packet_checksum"),
    "text in place of bytes": (with_records(packets=ConfigRecord({"update": "zeros"})), "wrong_type"),
    "list of packets": (
        lambda told: RecordDict({**told.records(), "fedq.packets": ConfigRecord({"update": [told.packet()]})}),
        "wrong_type",
    ),
    "arrays in place of a packet": (in_place_of_packet, "wrong_type"),
    "a plain Flower reply": (plain_flower, "extra_key"),
    # rounds, bases, kinds
    "packet of another round": (instead(packet_round=7), "packet_round"),
    "reply to another round": (with_records(reply=ConfigRecord({"round": 7})), "round"),
    "round that is no integer": (with_records(reply=ConfigRecord({"round": 1.0})), "wrong_type"),
    "wrong base": (instead(base=b"0123456789abcdef"), "packet_base"),
    "no base": (instead(base=b""), "packet_base"),
    "weights in place of a delta": (instead(kind="weights"), "packet_kind"),
    # no update at all
    "error reply": (lambda told: Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "secret"), "error"),
    "refusal": (lambda told: wire.write_refusal(wire.Refusal(told.round, "declined")), "declined"),
    "refusal of another round": (lambda told: wire.write_refusal(wire.Refusal(7, "declined")), "round"),
    "made-up refusal code": (
        lambda told: wire.write_refusal(wire.Refusal(told.round, "patient 41 was ill")),
        "wrong_type",
    ),
    "refusal beside an update": (
        lambda told: RecordDict({**told.records(), **wire.write_refusal(wire.Refusal(told.round, "declined"))}),
        "extra_key",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def without_the_liar():
    return run(clients=HONEST)


@pytest.mark.parametrize("name", LIES)
def test_model_is_that_of_the_round_without_the_liar(name, without_the_liar):
    lie, reason = LIES[name]
    lied_to = run({"2": lie})
    assert [lied_to.reasons(round) for round in (1, 2)] == [[("2", reason)]] * 2
    assert [round.status for round in lied_to.rounds] == ["initial", "ok", "ok"]
    assert lied_to.model == without_the_liar.model


def test_every_reason_has_a_meaning_written_down():
    known = {*wire.REJECTIONS, *wire.REFUSALS, *(f"packet_{reason}" for reason in REASONS)}
    assert {reason for _, reason in LIES.values()} <= known


def test_the_honest_client_does_move_the_model(without_the_liar):
    """Else all of the above would hold of a server that drops everything."""
    honest = run()
    assert honest.reasons(1) == []
    assert honest.model != without_the_liar.model


def test_a_lie_told_once_costs_one_round():
    once = run({"2": lambda told: RecordDict(told.records(b"" if told.round == 1 else None))})
    assert once.reasons(1) == [("2", "packet_length")]
    assert once.reasons(2) == []


def test_several_liars_are_dropped_together():
    lied_to = run({"0": LIES["NaN"][0], "2": LIES["error reply"][0]})
    assert lied_to.reasons(1) == [("0", "packet_nonfinite"), ("2", "error")]
    assert lied_to.model == run(clients=("1", "3")).model


@pytest.mark.parametrize("extra", ["num_examples", "loss", "age"])
def test_under_dp_a_reply_with_any_metric_is_dropped(extra):
    lied_to = run({"2": with_records(metrics=MetricRecord({extra: 1.0}))}, private=True)
    assert lied_to.reasons(1) == [("2", "extra_key")]
    assert lied_to.model == run(clients=HONEST, private=True).model


# --- what only a network can do -------------------------------------------------------------------------


def sender(message):
    """Node ids count the clients from 1 in the order of their names."""
    return str(message.metadata.src_node_id - 1)


def forge_sender(reply, node):
    return Message(reply.content, reply_to=Message(RecordDict(), dst_node_id=node, message_type=wire.TRAIN))


def test_a_second_reply_is_dropped_and_the_first_counts():
    twice = run(deliver=lambda replies: [*replies, replies[2]])
    assert twice.reasons(1) == [("2", "duplicate")]
    assert twice.model == run().model


def test_a_second_reply_is_dropped_where_the_first_was_malformed():
    other = run({"2": LIES["noise"][0]}, deliver=lambda replies: [*replies, forge_sender(replies[0], 3)])
    assert other.reasons(1) == [("2", "duplicate"), ("2", "packet_magic")]
    assert other.model == run(clients=HONEST).model


def test_a_reply_of_an_unknown_node_is_dropped():
    foreign = run(deliver=lambda replies: [forge_sender(replies[0], 999), *replies])
    assert foreign.reasons(1) == [("999", "unknown_node")]
    assert foreign.model == run().model


def test_a_reply_of_a_client_that_was_not_asked_is_dropped():
    def volunteer(replies):
        absent = min(set(range(1, 5)) - {reply.metadata.src_node_id for reply in replies})
        return [forge_sender(replies[0], absent), *replies]

    volunteered = run(cohort=2, deliver=volunteer)
    assert [reason for _, reason in volunteered.reasons(1)] == ["unknown_node"]
    assert volunteered.model == run(cohort=2).model


def test_a_lost_reply_is_named():
    lost = run(deliver=lambda replies: [reply for reply in replies if sender(reply) != "2"])
    assert lost.reasons(1) == [("2", "no_reply")]
    assert lost.model == run(clients=HONEST).model


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]])
def test_the_order_of_replies_does_not_matter(order):
    lies = {"1": LIES["NaN"][0]}
    ordered, shuffled = run(lies), run(lies, deliver=lambda replies: [replies[i] for i in order])
    assert shuffled.model == ordered.model
    assert shuffled.reasons(1) == ordered.reasons(1) == [("1", "packet_nonfinite")]
    assert list(shuffled.rounds[1].accepted) == ["0", "2", "3"]
    assert shuffled.rounds[1].train_loss == ordered.rounds[1].train_loss


ROSTER = Roster({"a": 11, "b": 12, "c": 13})


def collected(replies, cohort=("b", "a"), task=wire.EVALUATE, **options):
    """What becomes of (node, content) pairs in round 3."""
    flower.enter()
    strategy = make_strategy(**options)
    messages = [
        Message(content, reply_to=Message(RecordDict(), dst_node_id=node, message_type=task))
        for node, content in replies
    ]
    return strategy.collect(3, messages, cohort, ROSTER, strategy.snapshot(START, 3), task=task)


def evaluated(*numbers, round=3, **changes):
    return wire.write_reply(wire.Reply(round, {}, *numbers, **changes))


def test_evaluations_are_collected_by_name_with_their_numbers():
    total = collected([(12, evaluated(20, 0.5, 0.75)), (11, evaluated(10, 0.25, 1.0))])
    assert total.accepted == [Accepted("a", 10.0, 0.25, 1.0), Accepted("b", 20.0, 0.5, 0.75)]
    assert (total.rejected, total.sums) == ([], {})


def test_an_evaluation_under_dp_has_no_number_and_the_weight_of_every_other():
    told = [(11, evaluated(counts=(7, -1)))]
    assert collected(told, ["a"], private=True).accepted == [Accepted("a", 1.0, None, None, 7, -1)]
    assert collected([(11, evaluated())], ["a"], private=True).reasons == {"missing_key": 1}
    assert collected([(11, evaluated(10, 0.5, 1.0))], ["a"], private=True).reasons == {"extra_key": 1}


def test_each_reply_is_judged_by_itself():
    replies = [
        (99, evaluated(10, 0.5, 1.0)),  # of nobody
        (13, evaluated(10, 0.5, 1.0)),  # of a client that was not asked
        (12, evaluated(10, 0.5)),  # without a metric
        (12, evaluated(10, 0.5, 1.0)),
        (11, evaluated(10, 0.5, 1.0)),
    ]
    total = collected(replies, ["d", "b", "a"])
    assert [a.client for a in total.accepted] == ["a"]
    assert total.rejected == [
        Rejected("99", "unknown_node"),
        Rejected("b", "duplicate"),
        Rejected("b", "missing_key"),
        Rejected("c", "unknown_node"),
        Rejected("d", "no_reply"),
    ]


def test_a_training_reply_has_no_metric_and_an_evaluation_no_packet():
    with_packet = wire.Reply(3, {"update": b""}, 10, 0.5, 1.0)
    assert collected([(11, wire.write_reply(with_packet))], ["a"]).reasons == {"extra_key": 1}
    assert collected([(11, wire.write_reply(with_packet))], ["a"], wire.TRAIN).reasons == {"extra_key": 1}
    assert collected([(11, evaluated(10, 0.5))], ["a"], wire.TRAIN).reasons == {"missing_key": 1}


# --- too few ----------------------------------------------------------------------------------------------


def test_with_too_few_good_replies_the_round_is_skipped_and_the_model_unchanged():
    skipped = run({"0": LIES["NaN"][0], "2": LIES["zero weight"][0]}, min_clients=3)
    assert [round.status for round in skipped.rounds] == ["initial", "skipped", "skipped"]
    assert skipped.model == START.tobytes()


def test_a_round_without_any_good_reply_is_skipped():
    assert run(dict.fromkeys("0123", LIES["noise"][0])).model == START.tobytes()


def test_a_skipped_round_leaves_the_server_optimizer_as_it_was():
    """Round 2 alone must give what a first round gives: no momentum, no step counted, in the skipped one."""
    import torch

    def adam(parameters):
        return torch.optim.Adam(parameters, lr=0.1)

    silent_at_first = {
        name: (lambda told: wire.write_refusal(wire.Refusal(1, "declined")) if told.round == 1 else honest(told))
        for name in "0123"
    }
    first, second = run(silent_at_first, optimizer=adam).rounds[1:]
    assert (first.status, second.status) == ("skipped", "ok")
    # Adam's first step has length lr in every coordinate that moves: |m / sqrt(v)| = 1.
    moved = run(silent_at_first, optimizer=adam).outcome.master - START
    assert np.abs(moved).max() == pytest.approx(0.1, rel=1e-4)


def test_a_client_is_told_that_the_update_of_a_skipped_round_did_not_count():
    some = {"0": LIES["noise"][0], "2": LIES["noise"][0]}
    told_first_round_counts = run(some, min_clients=2).requests
    told_it_does_not = run(some, min_clients=3).requests
    assert [r.accepted for name, r in told_first_round_counts if name == "1"] == [-1, 1]
    assert [r.accepted for name, r in told_it_does_not if name == "1"] == [-1, -1]


def test_a_client_is_told_that_its_dropped_update_did_not_count():
    requests = run({"2": LIES["noise"][0]}).requests
    assert [r.accepted for name, r in requests if name == "2"] == [-1, -1]


def honest(told: Told) -> RecordDict:
    return RecordDict(told.records())


def test_the_hand_made_reply_is_what_wire_writes():
    told = Told(1, b"0123456789abcdef", update_of("0", 1), 10)
    written = wire.write_reply(wire.Reply(1, {"update": told.packet()}, 10, 0.5))
    assert RecordDict(told.records()) == written
