"""Bytes are lengths of real serializations; the float32 bytes are those of the same run under codec=float32."""

import math

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from fedq.codec import Layout, encode
from fedq.experiment import build
from fedq.flower import private as flower
from fedq.flower import wire
from fedq.flower.private import serialized
from fedq.runtime.local import in_process
from fedq.server import CyclicSampler, Rules, run_rounds
from fedq.server.loop import Scores
from fedq.server.meter import Meter
from tests.quick import compose

LAYOUT = Layout.flat(1000)


@pytest.fixture(autouse=True)
def _flower():
    flower.enter()


def packet(codec="int8", layout=LAYOUT):
    return encode(np.zeros(layout.size, np.float32), codec, layout=layout)


def asked(round=1, accepted=-1, node=1, model=None, task="train"):
    request = wire.Request(round, accepted, {"model": packet() if model is None else model})
    return Message(wire.write_request(request), dst_node_id=node, message_type=task)


def answered(reply, node=1):
    return Message(wire.write_reply(reply), reply_to=asked(node=node))


def counted_down(*messages, layout=LAYOUT):
    meter = Meter(layout)
    for message in messages:
        meter.down(message)
    return meter.take()


def counted_up(*messages, layout=LAYOUT):
    meter = Meter(layout)
    for message in messages:
        meter.up(message)
    return meter.take()


# Varints grow by a byte at 64 (signed), 128, 8192 (signed), 16384, ...
REQUESTS = [(round, round - 1, node) for round in (0, 1, 63, 64, 8191, 8192, 10**6) for node in (1, 127, 128, 2**63)]


def test_requests_count_what_they_serialize_to():
    messages = [asked(*request) for request in REQUESTS]
    assert counted_down(*messages).down == sum(len(serialized(message)) for message in messages)


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 16_383, 16_384, 70_000, 2**21])
def test_packets_of_any_length_count_what_they_serialize_to(size):
    messages = [asked(round, model=bytes(size)) for round in (1, 2, 70, 71, 9000)]
    assert counted_down(*messages).down == sum(len(serialized(message)) for message in messages)


def test_replies_count_what_they_serialize_to():
    replies = [
        wire.Reply(1, {"update": packet()}),
        wire.Reply(1, {"update": packet()}, 12, 0.5),
        wire.Reply(1, {"update": packet()}, 10**6, math.nan),
        wire.Reply(1, {"update": packet("float32")}, 12, 0.5),
        wire.Reply(1, {"update": packet("float16"), "control": packet()}, 12, 0.5),
        wire.Reply(1, {}, 12, 0.5, 0.9),
    ]
    messages = [answered(reply, node) for reply in replies for node in (1, 200)]
    assert counted_up(*messages).up == sum(len(serialized(message)) for message in messages)


def test_messages_without_packets_count_what_they_serialize_to():
    hello = wire.write_hello(wire.Hello("7", "0.1", (1,), bytes(16)))
    messages = [
        Message(wire.empty(), dst_node_id=1, message_type=wire.HELLO),
        Message(hello, reply_to=asked()),
        Message(wire.write_refusal(wire.Refusal(1, "budget")), reply_to=asked()),
        Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "text"), reply_to=asked()),
        Message(RecordDict({"fedq.packets": MetricRecord({"update": 1})}), reply_to=asked()),
    ]
    traffic = counted_up(*messages)
    assert traffic.up == traffic.float32_up == sum(len(serialized(message)) for message in messages)


def test_a_length_seen_before_is_right_for_every_node_and_round():
    """A byte may move from one part of a message to another: the sum is the same, an outer length's length is not."""
    for size in range(16_250, 16_400):
        messages = [asked(round=64, node=127, model=bytes(size)), asked(round=63, node=128, model=bytes(size))]
        assert counted_down(*messages).down == sum(len(serialized(message)) for message in messages), size


def test_a_hostile_record_beside_the_packet_is_counted_too():
    def hostile(note):
        content = wire.write_reply(wire.Reply(1, {"update": packet()}, 12, 0.5))
        content["fedq.packets"] = ConfigRecord({"update": packet(), "note": note})
        return Message(content, reply_to=asked())

    messages = [hostile("x"), hostile("x" * 5000)]
    assert counted_up(*messages).up == sum(len(serialized(message)) for message in messages)


@pytest.mark.parametrize("codec", ["int8", "float16", "float32"])
def test_float32_bytes_are_those_of_the_same_message_with_a_float32_packet(codec):
    traffic = counted_down(asked(model=packet(codec)))
    assert traffic.float32_down == len(serialized(asked(model=packet("float32"))))


def test_every_packet_of_a_message_is_weighed_as_float32():
    both = {"update": packet(), "control": packet("float16")}
    wide = {"update": packet("float32"), "control": packet("float32")}
    assert counted_up(answered(wire.Reply(1, both))).float32_up == len(serialized(answered(wire.Reply(1, wide))))


def test_a_message_is_the_same_after_it_was_weighed():
    message = asked()
    before = serialized(message)
    counted_down(message, message)
    assert serialized(message) == before


def test_up_and_down_are_kept_apart_and_taken_once():
    meter = Meter(LAYOUT)
    meter.down(asked())
    meter.up(answered(wire.Reply(1, {"update": packet()}, 12, 0.5)))
    traffic = meter.take()
    assert traffic.down == len(serialized(asked()))
    assert traffic.up == len(serialized(answered(wire.Reply(1, {"update": packet()}, 12, 0.5))))
    rest = meter.take()
    assert (rest.up, rest.down, rest.float32_up, rest.float32_down, rest.fields) == (0, 0, 0, 0, [])


def test_fields_of_everything_that_came_up_are_listed():
    told = counted_up(
        answered(wire.Reply(1, {"update": packet()}, 12, 0.5)),
        Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "text"), reply_to=asked()),
    )
    assert told.fields == [
        "error",
        "fedq.metrics.loss",
        "fedq.metrics.num_examples",
        "fedq.packets.update",
        "fedq.reply.round",
    ]


# --- a whole run ------------------------------------------------------------------------------------------


def traffic_of_a_run(folder, data, *overrides):
    """(hello, each round's traffic) of 3 rounds on 4 of 5 digits clients."""
    usual = ["clients=5", "fraction=0.8", "rounds=3", "model.hidden=[16]", "train.epochs=0.25"]
    experiment = build(compose([*usual, *overrides]), data=data)
    strategy = experiment.strategy()
    link = in_process(experiment, strategy, folder)
    roster, hello = link.meet()
    rounds = []
    run_rounds(
        strategy=strategy,
        sampler=CyclicSampler(list(roster.nodes), seed=0),
        master=experiment.initial,
        gather=link.gather,
        score=lambda round, master: Scores(),
        watch=rounds.append,
        rules=Rules(3, 4),
        hello=hello,
    )
    return [(r.traffic.up, r.traffic.down, r.traffic.float32_up, r.traffic.float32_down) for r in rounds]


def test_float32_bytes_of_a_run_are_what_the_run_under_float32_really_counts(tmp_path):
    from fedq.data import digits

    data = digits()
    compressed = traffic_of_a_run(tmp_path / "int8", data, "codec=int8", "codec.error_feedback=true")
    plain = traffic_of_a_run(tmp_path / "float32", data, "codec=float32")
    assert [row[2:] for row in compressed] == [row[:2] for row in plain]
    assert all(up == wide_up and down == wide_down for up, down, wide_up, wide_down in plain)
    # 1,210 parameters: 1,184 levels of a byte and small parts against 4,840 bytes.
    assert all(row[0] < 0.45 * row[2] and row[1] < 0.45 * row[3] for row in compressed[1:])
