"""Records and keys of every message, and what a reader refuses."""

import math

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedq.flower import private as flower
from fedq.flower import wire

PACKET = b"\x00\x01"
TRAINED = frozenset({"num_examples", "loss"})
HELLO = wire.Hello("7", "0.1", (1, 2), bytes(range(16)))
GOOD = wire.Reply(3, {"update": PACKET}, 12, 0.5)


def over_a_network(content):
    """The same content after Flower's own serialization."""
    flower.enter()
    message = Message(content, dst_node_id=1, message_type="train")
    return flower.deserialized(flower.serialized(message)).content


def read(content, *, round=3, packets=frozenset({"update"}), metrics=TRAINED):
    return wire.read_reply(content, round=round, packets=packets, metrics=metrics)


def reason_of(call, *arguments, **named):
    with pytest.raises(wire.MalformedReply, match=r"^\w+: ") as caught:
        call(*arguments, **named)
    assert caught.value.reason in wire.REJECTIONS
    return caught.value.reason


def with_record(name, record):
    return RecordDict({**wire.write_reply(GOOD), name: record})


# --- there and back ---------------------------------------------------------------------------------------


def test_a_hello_comes_back():
    assert wire.read_hello(over_a_network(wire.write_hello(HELLO))) == HELLO


@pytest.mark.parametrize("accepted", [-1, 0, 41])
def test_a_request_comes_back(accepted):
    request = wire.Request(42, accepted, {"model": PACKET})
    assert wire.read_request(over_a_network(wire.write_request(request))) == request


def test_a_request_with_changes_comes_back_in_their_order():
    """Twelve: `delta.10` sorts before `delta.2`."""
    deltas = [bytes([number]) for number in range(12)]
    request = wire.Request(42, 41, dict(sorted(wire.name_deltas(deltas).items())))
    assert wire.model_of(wire.read_request(over_a_network(wire.write_request(request))).packets) == deltas


def test_a_request_with_weights_brings_one_packet():
    assert wire.model_of({"model": PACKET}) == PACKET


@pytest.mark.parametrize(
    "names", [[], ["delta.1"], ["delta.0", "delta.2"], ["delta.0", "model"], ["delta.00"], ["delta.-1"], ["update"]]
)
def test_a_request_that_brings_neither_weights_nor_all_changes_is_refused(names):
    assert reason_of(wire.model_of, dict.fromkeys(names, PACKET)) == "missing_key"


@pytest.mark.parametrize("accepted", [None, -1, 41])
def test_a_request_to_another_app_s_client_comes_back_with_the_codec_of_the_update(accepted):
    request = wire.ForeignRequest(42, accepted, 0, b"layout", "arrays", "sign", bytes(8), {"model": PACKET})
    content = wire.write_foreign_request(request, RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord()}))
    assert wire.read_foreign_request(over_a_network(content)) == request


def test_a_reply_comes_back():
    assert read(over_a_network(wire.write_reply(GOOD))) == GOOD


def test_a_reply_under_dp_comes_back_without_numbers():
    reply = wire.Reply(3, {"update": PACKET})
    assert read(over_a_network(wire.write_reply(reply)), metrics=frozenset()) == reply


def test_an_evaluation_comes_back_without_packets():
    reply = wire.Reply(3, {}, 12, 0.5, 0.9)
    content = over_a_network(wire.write_reply(reply))
    assert read(content, packets=frozenset(), metrics=frozenset({"num_examples", "loss", "metric"})) == reply


@pytest.mark.parametrize("reason", wire.REFUSALS)
def test_a_refusal_comes_back(reason):
    assert read(over_a_network(wire.write_refusal(wire.Refusal(3, reason)))) == wire.Refusal(3, reason)


def test_a_hello_request_holds_nothing():
    assert wire.fields_of(wire.empty()) == set()


# --- what leaves a client under DP ------------------------------------------------------------------------


def test_everything_that_a_client_sends_under_dp_is_public():
    contents = [
        wire.write_hello(HELLO),
        wire.write_reply(wire.Reply(3, {"update": PACKET})),
        wire.write_reply(wire.Reply(3, counts=(7, -1))),
        wire.write_refusal(wire.Refusal(0, "budget", "clinic-a")),
    ]
    assert set.union(*map(wire.fields_of, contents)) == wire.PUBLIC_FIELDS


@pytest.mark.parametrize("field", ["num_examples", "loss", "metric"])
def test_no_number_of_a_client_is_public(field):
    content = wire.write_reply(wire.Reply(3, {"update": PACKET}, **{field: 1}))
    assert wire.fields_of(content) - wire.PUBLIC_FIELDS == {f"fedq.metrics.{field}"}


def test_a_refusal_holds_a_code_and_a_round_and_no_text():
    assert {name: dict(record) for name, record in wire.write_refusal(wire.Refusal(3, "ledger")).items()} == {
        "fedq.refusal": {"round": 3, "reason": "ledger"}
    }


# --- a reply that must not be used ------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf, -math.inf])
def test_a_weight_outside_its_range_is_refused(weight):
    assert reason_of(read, wire.write_reply(wire.Reply(3, {"update": PACKET}, weight, 0.5))) == "weight"


@pytest.mark.parametrize("weight", [1, 100, 100.0, 0.5, 2**63 - 1])
def test_any_other_weight_is_read_and_the_strategy_caps_it(weight):
    assert read(wire.write_reply(wire.Reply(3, {"update": PACKET}, weight, 0.5))).num_examples == weight


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_refused(loss):
    assert reason_of(read, wire.write_reply(wire.Reply(3, {"update": PACKET}, 12, loss))) == "metric"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RecordDict(), "missing_key"),
        (RecordDict({"fedq.reply": ConfigRecord({"round": 3})}), "missing_key"),
        (with_record("note", ConfigRecord()), "extra_key"),
        (with_record("fedq.reply", ConfigRecord({"round": 3, "host": "x"})), "extra_key"),
        (with_record("fedq.reply", ConfigRecord({"round": 4})), "round"),
        (with_record("fedq.reply", ConfigRecord({"round": True})), "wrong_type"),
        (with_record("fedq.reply", ConfigRecord({"round": "3"})), "wrong_type"),
        (with_record("fedq.reply", MetricRecord({"round": 3})), "wrong_type"),
        (with_record("fedq.packets", ConfigRecord({"control": PACKET})), "extra_key"),
        (with_record("fedq.packets", ConfigRecord()), "missing_key"),
        (with_record("fedq.packets", ConfigRecord({"update": "text"})), "wrong_type"),
        (with_record("fedq.packets", ConfigRecord({"update": [PACKET]})), "wrong_type"),
        (with_record("fedq.packets", ArrayRecord({"update": Array("u1", (2,), "", PACKET)})), "wrong_type"),
        (with_record("fedq.metrics", MetricRecord({"num_examples": 12})), "missing_key"),
        (with_record("fedq.metrics", MetricRecord({"num_examples": 12, "loss": 0.5, "age": 1})), "extra_key"),
        (with_record("fedq.metrics", MetricRecord({"num_examples": [12], "loss": 0.5})), "wrong_type"),
        (with_record("fedq.metrics", ConfigRecord({"num_examples": True, "loss": 0.5})), "wrong_type"),
        (with_record("fedq.refusal", ConfigRecord({"round": 3, "reason": "budget"})), "extra_key"),
    ],
)
def test_a_reply_of_another_form_is_refused(content, reason):
    assert reason_of(read, content) == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (ConfigRecord({"round": 3, "reason": "the patient in row 41"}), "wrong_type"),
        (ConfigRecord({"round": 3, "reason": b"budget"}), "wrong_type"),
        (ConfigRecord({"round": 2, "reason": "budget"}), "round"),
        (ConfigRecord({"round": 3, "reason": "budget", "text": "x"}), "extra_key"),
        (ConfigRecord({"reason": "budget"}), "missing_key"),
        (MetricRecord({"round": 3}), "wrong_type"),
    ],
)
def test_a_refusal_of_another_form_is_refused(record, reason):
    assert reason_of(read, RecordDict({"fedq.refusal": record})) == reason


def test_under_dp_a_reply_with_numbers_is_refused():
    assert reason_of(read, wire.write_reply(GOOD), metrics=frozenset()) == "extra_key"


def test_what_a_refused_reply_held_is_not_repeated():
    """The text of the error goes to the server's log."""
    content = with_record("row 41 of patients", ConfigRecord())
    with pytest.raises(wire.MalformedReply, match=r"^extra_key: ") as caught:
        read(content)
    assert "41" not in str(caught.value)


# --- a request, a hello -----------------------------------------------------------------------------------


@pytest.mark.parametrize("round", [0, 2**32 - 1])
@pytest.mark.parametrize("holdout", [0.0, 0.25, math.nextafter(1, 0)])
def test_a_request_at_the_limits_comes_back(round, holdout):
    request = wire.Request(round, -1, {}, holdout)
    assert wire.read_request(over_a_network(wire.write_request(request))) == request


def test_a_share_is_named_only_where_examples_are_kept_back():
    assert dict(wire.write_request(wire.Request(1, -1))["fedq.request"]) == {"round": 1, "accepted": -1}
    assert wire.write_request(wire.Request(1, -1, {}, 0.25))["fedq.request"]["holdout"] == 0.25


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"holdout": 1.0}, "wrong_type"),
        ({"holdout": -0.1}, "wrong_type"),
        ({"holdout": math.nan}, "wrong_type"),
        ({"holdout": 0}, "wrong_type"),
        ({"accepted": 1.0}, "wrong_type"),
        ({"accepted": "1"}, "wrong_type"),
        ({"note": "x"}, "extra_key"),
    ],
)
def test_numbers_that_no_request_holds_are_refused(changes, reason):
    content = wire.write_request(wire.Request(1, -1, {"model": PACKET}))
    content = RecordDict({**content, "fedq.request": ConfigRecord({**content["fedq.request"], **changes})})
    assert reason_of(wire.read_request, content) == reason


def test_a_packet_that_is_no_bytes_is_refused_in_a_request():
    content = wire.write_request(wire.Request(1, -1))
    assert reason_of(wire.read_request, RecordDict({**content, "fedq.packets": ConfigRecord({"model": 1})})) == (
        "wrong_type"
    )


@pytest.mark.parametrize("round", [-1, 2**32])
def test_a_round_that_no_packet_can_name_is_refused(round):
    assert reason_of(wire.read_request, wire.write_request(wire.Request(round, -1))) == "round"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RecordDict(), "missing_key"),
        (RecordDict({"config": ConfigRecord({"server-round": 1})}), "extra_key"),
        (RecordDict({"fedq.request": ConfigRecord({"round": 1}), "fedq.packets": ConfigRecord()}), "missing_key"),
        (
            RecordDict({"fedq.request": ConfigRecord({"round": 1.5, "accepted": 0}), "fedq.packets": ConfigRecord()}),
            "wrong_type",
        ),
    ],
)
def test_a_request_of_another_form_is_refused(content, reason):
    assert reason_of(wire.read_request, content) == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"identity": 7}, "wrong_type"),
        ({"identity": ""}, "wrong_type"),
        ({"identity": "x" * 65}, "wrong_type"),
        ({"identity": "a\x1b[2Jb"}, "wrong_type"),
        ({"version": b"1"}, "wrong_type"),
        ({"formats": 1}, "wrong_type"),
        ({"formats": ["1"]}, "wrong_type"),
        ({"formats": [True]}, "wrong_type"),
        ({"layout": "digest"}, "wrong_type"),
        ({"cpu": "x"}, "extra_key"),
    ],
)
def test_a_hello_of_another_form_is_refused(changes, reason):
    record = {**wire.write_hello(HELLO)["fedq.hello"], **changes}
    assert reason_of(wire.read_hello, RecordDict({"fedq.hello": ConfigRecord(record)})) == reason


@pytest.mark.parametrize("identity", ["7", "x" * 64, "Kraków 1"])
def test_a_printable_name_of_up_to_64_characters_is_read(identity):
    assert wire.read_hello(wire.write_hello(wire.Hello(identity, "0.1", (), b""))).identity == identity


def test_a_client_may_refuse_to_say_hello():
    for refusal in (wire.Refusal(0, "declined"), wire.Refusal(0, "policy", "clinic-a")):
        assert wire.read_hello(wire.write_refusal(refusal)) == refusal
    assert reason_of(wire.read_hello, wire.write_refusal(wire.Refusal(0, "policy", "x" * 65))) == "wrong_type"
    assert reason_of(wire.read_hello, wire.write_refusal(wire.Refusal(1, "declined"))) == "round"
    assert reason_of(wire.read_hello, RecordDict({"fedq.hello": MetricRecord()})) == "wrong_type"


# --- what a request brings --------------------------------------------------------------------------------


def test_a_request_brings_weights_or_changes_from_the_oldest_on():
    assert wire.name_deltas([b"a", b"b"]) == {"delta.0": b"a", "delta.1": b"b"}
    assert wire.model_of({"model": PACKET}) == PACKET
    assert wire.model_of({"delta.1": b"b", "delta.0": b"a"}) == [b"a", b"b"]


@pytest.mark.parametrize(
    "names", [[], ["update"], ["delta.1"], ["delta.0", "delta.2"], ["model", "delta.0"], ["delta.0", "update"]]
)
def test_packets_of_no_model_are_refused(names):
    assert reason_of(wire.model_of, dict.fromkeys(names, PACKET)) == "missing_key"


# --- for the meter ----------------------------------------------------------------------------------------


def test_packets_of_a_message_are_its_byte_values():
    assert wire.packets_of(wire.write_request(wire.Request(1, -1, {"model": PACKET}))) == {"model": PACKET}
    assert wire.packets_of(wire.write_hello(HELLO)) == {}
    assert wire.packets_of(RecordDict({"fedq.packets": ArrayRecord()})) == {}


def test_other_packets_leave_the_rest_of_the_message():
    swapped = wire.with_packets(wire.write_reply(GOOD), {"update": b"other"})
    assert read(swapped) == wire.Reply(3, {"update": b"other"}, 12, 0.5)
    assert wire.packets_of(wire.write_reply(GOOD)) == {"update": PACKET}


def test_what_else_a_hostile_record_of_packets_holds_stays():
    content = RecordDict({"fedq.packets": ConfigRecord({"update": PACKET, "note": "x"}), "more": ConfigRecord()})
    assert wire.packets_of(content) == {"update": PACKET}
    swapped = wire.with_packets(content, {"update": b"other", "model": b""})
    assert dict(swapped["fedq.packets"]) == {"update": b"other", "note": "x", "model": b""}
    assert set(swapped) == {"fedq.packets", "more"}
    arrays = RecordDict({"fedq.packets": ArrayRecord()})
    assert dict(wire.with_packets(arrays, {"update": PACKET})["fedq.packets"]) == {"update": PACKET}


# --- masks ------------------------------------------------------------------------------------------------


def test_a_mask_travels_beside_the_model():
    request = wire.Request(42, -1, {"model": PACKET, "mask": b"\x07"})
    packets = wire.read_request(over_a_network(wire.write_request(request))).packets
    assert (wire.model_of(packets), wire.mask_of(packets)) == (PACKET, b"\x07")


def test_a_request_without_a_mask_keeps_everything():
    assert wire.mask_of({"model": PACKET}) == b""


@pytest.mark.parametrize("packets", [{"mask": PACKET}, {"mask": PACKET, "delta.0": PACKET}])
def test_a_mask_without_a_model_is_refused(packets):
    assert reason_of(wire.model_of, packets) == "missing_key"


def test_packets_of_all_values_are_measured_without_a_mask():
    content = wire.write_request(wire.Request(42, -1, {"model": PACKET, "mask": b"\x07"}))
    assert wire.packets_of(wire.with_packets(content, {"model": b"dense"})) == {"model": b"dense"}


def test_a_reply_that_brings_a_mask_is_refused():
    reply = wire.write_reply(wire.Reply(3, {"update": PACKET, "mask": PACKET}, 12, 0.5))
    assert reason_of(read, reply) == "extra_key"


def test_noisy_counts_are_read_only_where_they_are_asked_for():
    content = over_a_network(wire.write_reply(wire.Reply(3, counts=(7, -1))))
    asked = {"round": 3, "packets": frozenset(), "metrics": frozenset()}
    assert wire.read_reply(content, counts=True, **asked).counts == (7, -1)
    assert reason_of(lambda c: wire.read_reply(c, **asked), content) == "extra_key"
    without = wire.write_reply(wire.Reply(3))
    assert reason_of(lambda c: wire.read_reply(c, counts=True, **asked), without) == "missing_key"


@pytest.mark.parametrize("counts", [{"right": 1}, {"right": 1, "wrong": 2.0}, {"right": 1, "wrong": 2**41}])
def test_counts_of_another_form_are_refused(counts):
    content = RecordDict({**wire.write_reply(wire.Reply(3)), "fedq.counts": ConfigRecord(counts)})
    asked = {"round": 3, "packets": frozenset(), "metrics": frozenset(), "counts": True}
    assert reason_of(lambda c: wire.read_reply(c, **asked), content) in ("missing_key", "wrong_type", "weight")
