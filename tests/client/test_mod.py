"""`quantized_mod` at one node: what the app is handed, what leaves, and what it says of a request it cannot read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedq import codec, quantized_mod
from fedq.codec import Int8, Layout, Segment, Sign, TopK
from fedq.core.randomness import generator
from fedq.flower import private as flower
from fedq.flower import wire

COUNTER = Segment("steps", (), "int64", role="local")
LAYOUT = Layout([Segment("weight", (32, 16)), COUNTER, Segment("bias", (4,))])
VECTOR = generator(0, "weights").normal(size=LAYOUT.size).astype(np.float32)
NUMBERS = MetricRecord({"num-examples": 5})


@pytest.fixture(autouse=True)
def _a_process():
    flower.enter()


@pytest.fixture
def context():
    return flower.new_context(9, {})


def asked(round=3, *, accepted=None, model="float32", used="float32", vector=VECTOR, layout=LAYOUT, **changes):
    """A request of the server: the model in one codec, and the codec of the update."""
    update = codec.as_codec(used)
    usual = wire.ForeignRequest(
        round=round,
        accepted=accepted,
        seed=0,
        layout=layout.to_bytes(),
        arrays="arrays",
        codec=update.name,
        options=update.options(),
        packets={"model": codec.encode(vector, model, layout=layout, kind="weights", round=round)},
        whole={"steps": Array(np.array(5))},
    )
    return replace(usual, **changes)


def message_of(request, task="train"):
    user = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({"server-round": request.round})})
    return Message(wire.write_foreign_request(request, user), dst_node_id=9, message_type=task)


def app_that(answers):
    """A Flower app of one function, from state_dict to state_dict."""

    def app(message, context):
        new = answers(message.content["arrays"].to_torch_state_dict())
        records = {"arrays": ArrayRecord(new), "metrics": NUMBERS, "notes": ConfigRecord({"a": 1})}
        return Message(RecordDict(records), reply_to=message)

    return app


def plus(step):
    return lambda state: {name: t + step if t.is_floating_point() else t for name, t in state.items()}


def update_in(reply):
    return codec.decode(reply.content["fedq.packets"]["update"], LAYOUT, round=3, kind="delta")


def test_the_app_is_handed_the_servers_arrays(context):
    handed = {}
    quantized_mod(message_of(asked()), context, app_that(lambda state: handed.update(state) or state))
    assert list(handed) == ["weight", "steps", "bias"]
    assert handed["steps"].item() == 5
    assert np.array_equal(handed["weight"].numpy(), VECTOR[:512].reshape(32, 16))


def test_the_update_leaves_in_place_of_the_arrays_and_all_else_passes(context):
    reply = quantized_mod(message_of(asked()), context, app_that(plus(0.5)))
    assert list(reply.content) == ["metrics", "notes", "fedq.reply", "fedq.packets"]
    assert dict(reply.content["metrics"]) == {"num-examples": 5}
    assert np.abs(update_in(reply) - 0.5).max() < 1e-6


@pytest.mark.parametrize(
    "used", ["float32", "float16", Int8(block=16), Sign(rotate=True), TopK(0.1, error_feedback=True)]
)
def test_the_update_travels_in_the_codec_that_the_request_names_whatever_that_of_the_model(context, used):
    reply = quantized_mod(message_of(asked(model="int8", used=used)), context, app_that(plus(0.5)))
    assert codec.peek(reply.content["fedq.packets"]["update"]).build_codec() == codec.as_codec(used)


@pytest.mark.parametrize("model", ["float32", "float16", Int8(block=16), Int8(rounding="stochastic")])
def test_the_update_is_against_the_model_as_it_was_decoded(context, model):
    request = asked(model=model)
    reply = quantized_mod(message_of(request), context, app_that(plus(0.5)))
    decoded = codec.decode(request.packets["model"], LAYOUT)
    assert codec.peek(reply.content["fedq.packets"]["update"]).base == codec.digest(decoded)
    assert np.abs(update_in(reply) - 0.5).max() < 1e-6


def test_a_cast_to_the_apps_dtype_is_not_taken_for_training(context):
    """float16 rounds the weights on the way to the app; an app that trains nothing has an update of zero."""
    half = Layout([Segment("weight", (32, 16), "float16"), COUNTER, Segment("bias", (4,), "float16")])
    reply = quantized_mod(message_of(asked(layout=half)), context, app_that(lambda state: state))
    assert not codec.decode(reply.content["fedq.packets"]["update"], half).any()


def test_nodes_round_by_draws_of_their_own():
    def packet(node):
        request = asked(used=Int8(rounding="stochastic"))
        # An update that no level hits: each value is drawn up or down.
        drawn = app_that(lambda state: {**state, "weight": state["weight"] + torch.linspace(0, 1, 512).reshape(32, 16)})
        reply = quantized_mod(message_of(request), flower.new_context(node, {}), drawn)
        return reply.content["fedq.packets"]["update"]

    assert packet(9) == packet(9)
    assert packet(9) != packet(8)


def test_an_evaluation_passes_as_the_app_wrote_it(context):
    def app(message, context):
        assert message.content["arrays"]["weight"].numpy().shape == (32, 16)
        return Message(RecordDict({"metrics": NUMBERS}), reply_to=message)

    reply = quantized_mod(message_of(asked(), "evaluate"), context, app)
    assert list(reply.content) == ["metrics"]


def test_an_error_of_the_app_passes(context):
    reply = quantized_mod(message_of(asked()), context, lambda m, c: Message(Error(2, "no data"), reply_to=m))
    assert reply.error.reason == "no data"


def test_a_message_of_another_strategy_passes_untouched(context):
    content = RecordDict({"arrays": ArrayRecord({"weight": torch.ones(2)}), "config": ConfigRecord()})
    message = Message(content, dst_node_id=9, message_type="train")
    assert quantized_mod(message, context, lambda message, context: message) is message
    assert message.content is content


# --- error feedback ------------------------------------------------------------------------------------


def answers(context, round, accepted, step, layout=LAYOUT):
    reply = quantized_mod(
        message_of(asked(round, accepted=accepted, used="int8", layout=layout)), context, app_that(step)
    )
    return codec.decode(reply.content["fedq.packets"]["update"], layout)


def uneven(state):
    """Far below one level beside a value that sets the level."""
    step = torch.full((32, 16), 0.001)
    step[:, 0] = 1.0
    return {**state, "weight": state["weight"] + step}


def test_what_an_accepted_update_lost_is_added_to_the_next(context):
    first, second = answers(context, 1, -1, uneven), answers(context, 2, 1, lambda state: state)
    assert first[1] == 0
    assert np.abs(second[1] - 0.001) <= 0.001 / 127 * 1.01


def test_what_a_dropped_update_lost_is_forgotten(context):
    answers(context, 1, -1, uneven)
    assert not answers(context, 2, -1, lambda state: state).any()


def test_a_server_that_begins_anew_gets_no_residual_of_the_run_before(context):
    answers(context, 1, -1, uneven)
    answers(context, 2, 1, uneven)
    assert not answers(context, 1, -1, lambda state: state).any()


def test_another_model_gets_no_residual_of_the_one_before(context):
    answers(context, 1, -1, uneven)
    other = Layout([Segment("weight", (32, 16), hint="float32"), COUNTER, Segment("bias", (4,))])
    assert not answers(context, 2, 1, lambda state: state, other).any()


def test_without_feedback_nothing_is_kept(context):
    quantized_mod(message_of(asked(used="int8")), context, app_that(uneven))
    assert len(context.state) == 0


# --- the app answers with something else -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (lambda state: {**state, "bias": torch.ones(5)}, r"'bias' has shape \(5,\)"),
        (lambda state: {**state, "head.weight": torch.ones(5)}, "'head.weight'"),
        (lambda state: {name: t for name, t in state.items() if name != "weight"}, "'weight' are missing"),
        (lambda state: {**state, "bias": torch.ones(4, dtype=torch.int64)}, "'bias' is int64"),
        (plus(float("nan")), "must be finite, in segment 'weight'; lower the learning rate"),
    ],
)
def test_other_arrays_than_were_sent_are_named(context, step, match):
    with pytest.raises(ValueError, match=match):
        quantized_mod(message_of(asked()), context, app_that(step))


@pytest.mark.parametrize("records", [{}, {"a": ArrayRecord(), "b": ArrayRecord()}])
def test_an_answer_without_exactly_one_arrayrecord_is_refused(context, records):
    with pytest.raises(ValueError, match=f"{len(records)} ArrayRecords: must be one"):
        quantized_mod(message_of(asked()), context, lambda m, c: Message(RecordDict(dict(records)), reply_to=m))


# --- the server sends something else ---------------------------------------------------------------------

ODD = {
    "no packet": (asked(packets={}), "no model packet"),
    "bytes that are no packet": (asked(packets={"model": b"?" * 200}), "magic"),
    "a packet of another round": (asked(round=4, packets=asked(3).packets), "round"),
    "a packet of another model": (asked(packets=asked(layout=Layout.flat(516)).packets), "layout"),
    "an update": (asked(packets={"model": codec.encode(VECTOR, "int8", layout=LAYOUT, round=3)}), "kind"),
    "no layout": (asked(layout=LAYOUT, whole={}), "no array 'steps'"),
    "an array too many": (asked(whole={"steps": Array(np.array(5)), "more": Array(np.array(5))}), "more"),
    "an array of another shape": (asked(whole={"steps": Array(np.array([5]))}), "no array 'steps'"),
    "an array of another dtype": (asked(whole={"steps": Array(np.array(5.0))}), "no array 'steps'"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_request_that_does_not_fit_is_refused_before_the_app_is_called(context, name):
    request, match = ODD[name]
    with pytest.raises(ValueError, match=match):
        quantized_mod(message_of(request), context, lambda *_: pytest.fail("the app was called"))


def test_bfloat16_is_refused_by_name(context):
    layout = Layout([Segment("weight", (2,), "bfloat16")])
    request = asked(layout=layout, vector=np.ones(2, np.float32), whole={})
    with pytest.raises(ValueError, match="'weight' is bfloat16"):
        quantized_mod(message_of(request), context, lambda *_: pytest.fail("the app was called"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"round": -1}, "round"),
        ({"round": 2**32}, "round"),
        ({"round": "3"}, "round must be int"),
        ({"seed": 0.5}, "seed must be int"),
        ({"layout": "text"}, "layout must be bytes"),
        ({"layout": b"\xff" * 40}, "layout"),
        ({"arrays": "weights"}, "no arrays under 'weights'"),
        ({"accepted": "1"}, "accepted must be int"),
        ({"codec": 8}, "codec must be str"),
        ({"codec": "int9"}, "codec 'int9': known codecs are float32"),
        ({"options": "text"}, "options must be bytes"),
        ({"options": b"\xff" * 8}, "options=f{16}: float32 has none"),
        ({"options": b""}, "options"),
        ({"more": 1}, "extra_key"),
    ],
)
def test_a_record_of_ours_that_is_malformed_is_refused(context, change, match):
    message = message_of(asked())
    message.content["fedq.guest"] = ConfigRecord({**message.content["fedq.guest"], **change})
    with pytest.raises(ValueError, match=match):
        quantized_mod(message, context, lambda *_: pytest.fail("the app was called"))
