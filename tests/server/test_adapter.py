"""`QuantizedFedAvg` in place of FedAvg in an app that knows nothing of fedq: what stays, what is dropped."""

import logging
import math
import random
import struct

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg
from foreign_app import FLOATS, NODES, STATE, App, examples_of, forged, run, trained, update_of

from fedq import codec
from fedq.codec import Int8, Layout, Segment
from fedq.flower import wire
from fedq.server import QuantizedFedAvg
from fedq.server.adapter import layout_of_record

pytestmark = pytest.mark.integration

BODY = 72  # where the values of a packet begin, after its header


@pytest.fixture
def warnings(caplog):
    """What Flower's logger was told at WARNING."""
    return lambda: [r.getMessage() for r in caplog.records if (r.name, r.levelno) == ("flwr", logging.WARNING)]


# --- as FedAvg -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 3])
def test_with_the_float32_codec_the_model_is_that_of_flowers_fedavg(rounds):
    theirs = run(FedAvg(), App(mods=()), rounds=rounds).model
    ours = run(QuantizedFedAvg(codec="float32"), rounds=rounds).model
    for name in FLOATS:
        assert np.abs(ours[name] - theirs[name]).max() < 1e-6
        assert np.abs(ours[name] - STATE[name].numpy()).max() > 0.01


def test_with_int8_the_model_is_within_the_rounding_of_both_ways():
    """One level of the model down, one of the update up, halved by rounding to the nearest."""
    theirs, ours = run(FedAvg(), App(mods=()), rounds=1).model, run(QuantizedFedAvg(codec="int8"), rounds=1).model
    update = max(np.abs(update_of(node, 1, "weight", (30, 20))).max() for node in NODES)
    assert np.abs(ours["weight"] - theirs["weight"]).max() <= update / 127 / 2 * 1.01
    assert np.abs(ours["weight"] - theirs["weight"]).max() > 0


def test_metrics_are_those_of_fedavg():
    theirs, ours = run(FedAvg(), App(mods=())).result, run(QuantizedFedAvg()).result
    assert ours.train_metrics_clientapp == theirs.train_metrics_clientapp
    assert ours.evaluate_metrics_clientapp == theirs.evaluate_metrics_clientapp
    assert dict(ours.evaluate_metrics_clientapp[2]) == {"accuracy": 0.25}


@pytest.mark.parametrize("options", [{"fraction_train": 0.5}, {"fraction_train": 0.0, "fraction_evaluate": 0.75}])
def test_the_nodes_are_sampled_as_fedavg_does(options):
    def asked(strategy, mods):
        random.seed(5)
        return [(seen.task, seen.node) for seen in run(strategy, App(mods=mods), rounds=3).app.seen]

    ours = asked(QuantizedFedAvg(**options), App().mods)
    assert ours == asked(FedAvg(**options), ())
    assert ours


def test_metrics_are_averaged_by_the_users_own_function():
    def count(records, key):
        return MetricRecord({"replies": len(records), "keys": len({key for r in records for key in r})})

    ran = run(QuantizedFedAvg(train_metrics_aggr_fn=count, evaluate_metrics_aggr_fn=count), rounds=1)
    assert dict(ran.result.train_metrics_clientapp[1]) == {"replies": 4, "keys": 2}  # metrics and notes, not ours
    assert dict(ran.result.evaluate_metrics_clientapp[1]) == {"replies": 4, "keys": 1}


def test_the_users_functions_get_their_own_records_and_nothing_of_ours():
    ran = run(QuantizedFedAvg(), train_config=ConfigRecord({"lr": 0.1}), rounds=1)
    for seen in ran.app.seen:
        assert list(seen.records) == ["arrays", "config"]
        assert dict(seen.records["config"]) == {"server-round": 1} | ({"lr": 0.1} if seen.task == "train" else {})
        assert list(seen.arrays) == list(STATE)
        assert [(a.dtype, a.shape) for a in seen.arrays.values()] == [
            (t.numpy().dtype, tuple(t.shape)) for t in STATE.values()
        ]


def test_the_records_have_the_names_that_the_user_chose():
    app = App()
    client = app.client

    def renamed(message, context):
        content = message.content
        message.content = RecordDict({"arrays": content["model"], "config": content["options"]})
        return client()(message, context)

    # A mod of its own, outside of which ours must stand.
    ours = App().mods[0]
    app.client = lambda: lambda message, context: ours(message, context, renamed)
    app.mods = ()
    ran = run(QuantizedFedAvg(codec="float32", arrayrecord_key="model", configrecord_key="options"), app)
    assert np.array_equal(ran.model["weight"], run(QuantizedFedAvg(codec="float32")).model["weight"])


# --- arrays --------------------------------------------------------------------------------------------


def test_integers_keep_the_servers_value_and_the_state_dict_is_whole():
    ran = run(QuantizedFedAvg())
    assert list(ran.model) == list(STATE)
    assert ran.model["norm.num_batches_tracked"].item() == 7
    assert ran.model["mask"].tolist() == [True, False]
    assert {n: a.dtype for n, a in ran.model.items()} == {n: t.numpy().dtype for n, t in STATE.items()}


def test_evaluate_fn_sees_the_same_state_dict_every_round():
    names = []
    run(QuantizedFedAvg(), evaluate_fn=lambda round, arrays: names.append(list(arrays)))
    assert names == [list(STATE)] * 3


def test_short_vectors_travel_as_they_are():
    """A running variance that is rounded below zero would be NaN in the first evaluation."""
    layout = layout_of_record(
        ArrayRecord({"running_var": torch.ones(4096), "w": torch.ones(4097), "m": torch.ones(16, 256)})
    )
    assert [s.name for s in layout.averaged if s.verbatim] == ["running_var"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_come_back_as_they_went(dtype):
    state = {name: tensor.to(dtype) if name in FLOATS else tensor for name, tensor in STATE.items()}
    ours = run(QuantizedFedAvg(codec="float32"), state=state, rounds=3)
    assert {seen.arrays["weight"].dtype for seen in ours.app.seen} == {state["weight"].numpy().dtype}
    assert ours.model["weight"].dtype == state["weight"].numpy().dtype
    theirs = run(FedAvg(), App(mods=()), state=state, rounds=3).model
    step = 2.0**-9 if dtype == torch.float16 else 2.0**-22  # of values below 4, in float16 or in the float32 between
    assert np.abs(ours.model["weight"] - theirs["weight"]).max() < 4 * step


def test_half_a_step_of_float16_is_not_lost():
    """The server keeps float32: updates too small for the app's dtype still add up."""
    state = {**STATE, "weight": torch.ones(30, 20, dtype=torch.float16)}
    small = np.float32(2.0**-10)  # the step of float16 at 1

    def train(arrays, node, round):
        return {**arrays, "weight": arrays["weight"] + np.float16(small if node == 1 else 0)}

    ran = run(QuantizedFedAvg(codec="float32", weighting="equal"), App(train), state=state, rounds=4)
    assert ran.model["weight"].max() == np.float16(1 + small)  # four rounds of a quarter


def test_bfloat16_is_refused_by_flower_itself():
    with pytest.raises(TypeError, match="BFloat16"):
        ArrayRecord({"weight": torch.ones(3, dtype=torch.bfloat16)})


@pytest.mark.parametrize("array", [Array(np.ones(3, np.complex64)), Array("bfloat16", (3,), "numpy.ndarray", b"")])
def test_other_dtypes_are_refused_by_name(array):
    with pytest.raises(ValueError, match=f"'odd' is {array.dtype}: must be float32, float16, float64, integer or bool"):
        QuantizedFedAvg().start(run_grid(), ArrayRecord({"w": Array(np.ones(3)), "odd": array}), num_rounds=1)


def run_grid():
    return run(QuantizedFedAvg(), rounds=1).grid


def test_a_model_without_floats_is_refused():
    with pytest.raises(ValueError, match="no float array"):
        run(QuantizedFedAvg(), state={"steps": torch.tensor(1)})


def test_a_tensor_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match="must be finite, in segment 'bias'"):
        run(QuantizedFedAvg(), state={**STATE, "bias": torch.full((20,), -math.inf)})


# --- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seed": 2**64}, "seed="),
        ({"codec": "int9"}, "did you mean int8"),
        ({"weighting": "size"}, "must be examples or equal"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        QuantizedFedAvg(**options)


def test_an_option_that_nobody_knows_is_refused():
    with pytest.raises(TypeError, match="fractoin_train"):
        QuantizedFedAvg(fractoin_train=0.5)


def test_a_server_optimizer_moves_parameters_and_leaves_running_statistics_to_the_mean():
    half = QuantizedFedAvg(codec="float32", optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    slow, full = run(half, rounds=1).model, run(QuantizedFedAvg(codec="float32"), rounds=1).model
    start = STATE["weight"].numpy()
    assert np.abs((slow["weight"] - start) - (full["weight"] - start) / 2).max() < 1e-6
    assert np.abs(slow["norm.running_var"] - full["norm.running_var"]).max() < 1e-6


def test_stochastic_rounding_is_drawn_for_each_node_round_and_seed():
    def model(seed):
        return run(QuantizedFedAvg(codec=Int8(rounding="stochastic"), seed=seed)).model["weight"]

    assert np.array_equal(model(1), model(1))
    assert not np.array_equal(model(1), model(2))


def test_a_second_start_begins_anew():
    momentum = QuantizedFedAvg(codec="float32", optimizer=lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9))
    first, second = run(momentum).model, run(momentum).model
    assert all(np.array_equal(first[name], second[name]) for name in STATE)


def test_a_second_start_may_have_another_model():
    strategy = QuantizedFedAvg(codec="float32")
    run(strategy)
    smaller = {**STATE, "weight": torch.ones(3, 2)}
    assert run(strategy, state=smaller).model["weight"].shape == (3, 2)


# --- error feedback ------------------------------------------------------------------------------------


def drift(arrays, node, round):
    """One weight moves far and forth, the others by a hundredth of its level, all in one block."""
    step = np.full(arrays["weight"].shape, 0.001, np.float32)
    step[::, 0] = 1.0 if round % 2 else -1.0
    return {**arrays, "weight": arrays["weight"] + step}


@pytest.mark.parametrize(("error_feedback", "arrives"), [(True, True), (False, False)])
def test_with_feedback_what_rounding_lost_arrives_later(error_feedback, arrives):
    """Levels are 1/127: without feedback a step of 0.001 is rounded away in every round."""
    start = {**STATE, "weight": torch.zeros(30, 20)}
    ran = run(QuantizedFedAvg(error_feedback=error_feedback), App(drift), state=start, rounds=20)
    moved = ran.model["weight"][:, 1:]
    assert bool(np.abs(moved - 20 * 0.001).max() <= 1 / 127) == arrives
    assert bool(np.abs(moved).max() > 0) == arrives


def test_the_residual_of_a_dropped_update_is_not_used():
    """Round 1's update is dropped: round 2 sends what it would have sent if there had been no round 1."""
    updates = {}

    def keep(reply, request):
        updates[reply.content["fedq.reply"]["round"]] = reply.content["fedq.packets"]["update"]
        return reply

    def lose_the_first(replies):
        return [reply for reply in replies if reply.content["fedq.reply"]["round"] != 1]

    def same(arrays, node, round):
        return {**arrays, "weight": arrays["weight"] + update_of(node, 0, "weight", (30, 20))}

    run(QuantizedFedAvg(error_feedback=True), App(same), lies={2: keep}, deliver=lose_the_first, rounds=3)
    first, second, third = (codec.decode(updates[round], LAYOUT) for round in (1, 2, 3))
    assert np.array_equal(first, second)
    assert not np.array_equal(second, third)


# --- hostile replies -----------------------------------------------------------------------------------

F32 = {"codec": "float32"}
LAYOUT = layout_of_record(ArrayRecord(dict(STATE)))


def with_packet(make):
    def lie(reply, request):
        packet = reply.content["fedq.packets"]["update"]
        reply.content["fedq.packets"] = ConfigRecord({"update": make(packet)})
        return reply

    return lie


def with_records(**records):
    def lie(reply, request):
        kept = {**reply.content, **{name.replace("_", "."): record for name, record in records.items()}}
        reply.content = RecordDict({name: record for name, record in kept.items() if record is not None})
        return reply

    return lie


def weighing(value):
    return with_records(metrics=MetricRecord({"loss": 0.5, "num-examples": value}))


def other(**changes):
    def make(packet):
        header = codec.peek(packet)
        told = {"layout": LAYOUT, "round": header.round, "base": header.base, **changes}
        return codec.encode(np.zeros(told["layout"].size, np.float32), "float32", **told)

    return with_packet(make)


def failed(reply, request):
    return Message(
        Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "Traceback\n  line 1\nno power\x1b[2J"), reply_to=request
    )


LIES = {
    "NaN": (with_packet(lambda p: forged(p, BODY, struct.pack("<f", math.nan))), "packet_nonfinite"),
    "a flipped bit": (with_packet(lambda p: p[:-1] + bytes([p[-1] ^ 1])), "packet_checksum"),
    "no bytes": (with_packet(lambda p: b""), "packet_length"),
    "not bytes": (with_packet(lambda p: "packet"), "wrong_type"),
    "another model": (other(layout=Layout([Segment("weight", (3,))])), "packet_layout"),
    "another round's packet": (other(round=9), "packet_round"),
    "another base": (other(base=bytes(range(16))), "packet_base"),
    "weights": (other(kind="weights"), "packet_kind"),
    "another round": (with_records(fedq_reply=ConfigRecord({"round": 9})), "round"),
    "no packet": (with_records(fedq_packets=None), "missing_key"),
    "two packets": (with_records(fedq_packets=ConfigRecord({"update": b"", "more": b""})), "extra_key"),
    "a record of ours too many": (with_records(fedq_more=ConfigRecord()), "extra_key"),
    "arrays beside the packet": (with_records(arrays=ArrayRecord()), "extra_key"),
    "arrays in place of the packet": (with_records(arrays=ArrayRecord(), fedq_packets=None), "no_mod"),
    "NaN weight": (weighing(math.nan), "weight"),
    "infinite weight": (weighing(math.inf), "weight"),
    "zero weight": (weighing(0), "weight"),
    "negative weight": (weighing(-1), "weight"),
    "weight below the accumulator's grid": (weighing(1e-30), "packet_weight"),
    "list of weights": (weighing([1, 2]), "wrong_type"),
    "no weight": (with_records(metrics=MetricRecord({"loss": 0.5})), "missing_key"),
    "no metrics": (with_records(metrics=None), "missing_key"),
    "two metrics": (with_records(more=MetricRecord({"num-examples": 5})), "missing_key"),
    "Flower's error": (failed, "error"),
}


@pytest.fixture(scope="module")
def without_the_liar():
    return run(QuantizedFedAvg(**F32), deliver=lambda replies: [r for r in replies if r.metadata.src_node_id != 2])


@pytest.mark.parametrize("name", LIES)
def test_a_bad_reply_costs_its_sender_only(name, without_the_liar, warnings):
    lie, reason = LIES[name]
    lied_to = run(QuantizedFedAvg(**F32), lies={2: lie})
    assert lied_to.result.train_metrics_clientapp == without_the_liar.result.train_metrics_clientapp
    assert {n: a.tobytes() for n, a in lied_to.model.items()} == {
        n: a.tobytes() for n, a in without_the_liar.model.items()
    }
    told = [line for line in warnings() if "dropped" in line]
    assert [line.split(" (")[0] for line in told] == [
        f"train, round {round}: node 2 dropped: {reason}" for round in (1, 2)
    ]
    assert not any(line.endswith("()") for line in told)


def test_a_second_reply_of_a_node_does_not_count(without_the_liar, warnings):
    def twice(replies):
        return [*replies, next(reply for reply in replies if reply.metadata.src_node_id == 1)]

    ran = run(QuantizedFedAvg(**F32), deliver=twice)
    assert ran.model["weight"].tobytes() == run(QuantizedFedAvg(**F32)).model["weight"].tobytes()
    assert any("node 1 dropped: duplicate" in line for line in warnings())


def test_the_last_line_of_what_a_failed_client_says_is_logged_without_its_escapes(warnings):
    run(QuantizedFedAvg(), lies={2: failed}, rounds=1)
    assert any(r"node 2 dropped: error ('no power\x1b[2J')" in line for line in warnings())


@pytest.mark.parametrize("metrics", [{"loss": [1.0, 2.0]}, {"loss": 1.0, "more": 1.0}, {}])
def test_metrics_of_another_form_are_left_out_and_the_update_counts(metrics, warnings):
    lie = with_records(metrics=MetricRecord({**metrics, "num-examples": examples_of(2)}))
    ran, honest = run(QuantizedFedAvg(**F32), lies={2: lie}), run(QuantizedFedAvg(**F32))
    assert ran.model["weight"].tobytes() == honest.model["weight"].tobytes()
    weights = np.array([examples_of(node) for node in (1, 3, 4)])
    expected = float(np.array([1, 3, 4]) @ weights / weights.sum())
    assert ran.result.train_metrics_clientapp[1]["loss"] == pytest.approx(expected)
    assert any("metrics of nodes 2 left out" in line for line in warnings())


def test_with_no_good_reply_the_model_stays_and_the_run_goes_on(warnings):
    seen = []
    ran = run(
        QuantizedFedAvg(),
        lies=dict.fromkeys(NODES, weighing(math.nan)),
        evaluate_fn=lambda round, arrays: seen.append(arrays["weight"].data),
    )
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert ran.result.train_metrics_clientapp == {}
    assert sum("dropped: weight" in line for line in warnings()) == 8


def test_fewer_good_replies_than_min_clients_leave_the_model():
    strategy = QuantizedFedAvg(min_clients=4)
    assert run(strategy, lies={2: weighing(math.nan)}).result.train_metrics_clientapp == {}


def test_a_bad_evaluation_costs_its_sender_only(warnings):
    app = App()

    def client():
        inner = App.client(app)

        def call(message, context):
            reply = inner(message, context)
            if context.node_id == 2 and message.metadata.message_type == wire.EVALUATE:
                reply.content = RecordDict({"metrics": MetricRecord({"accuracy": 1e9, "num-examples": math.nan})})
            return reply

        return call

    app.client = client
    ran = run(QuantizedFedAvg(), app, rounds=1)
    assert dict(ran.result.evaluate_metrics_clientapp[1]) == {"accuracy": 0.25}
    assert any("evaluate, round 1: node 2 dropped: weight" in line for line in warnings())


# --- the mod is missing, or stands under another strategy -----------------------------------------------


def test_an_app_without_the_mod_is_told_to_add_it():
    app, grid = App(mods=()), run(QuantizedFedAvg(), rounds=1).grid
    message, context = grid.sent[0], grid.contexts[1]
    with pytest.raises(TypeError, match=r"add mods=\[quantized_mod\] to this ClientApp"):
        app.client()(message, context)


def test_a_client_without_the_mod_that_answers_all_the_same_is_named(warnings):
    """It ignores what it gets, and sends arrays: the server says what is missing."""
    lie = with_records(arrays=ArrayRecord(dict(STATE)), fedq_packets=None, fedq_reply=None)
    run(QuantizedFedAvg(), lies={3: lie}, rounds=1)
    assert any("node 3 dropped: no_mod" in line and "add mods=[quantized_mod]" in line for line in warnings())


def test_under_plain_fedavg_the_mod_does_nothing():
    def model(app):
        random.seed(5)  # FedAvg's sums depend on the order in which it drew the nodes
        return run(FedAvg(), app).model

    with_mod, without = model(App()), model(App(mods=()))
    assert {n: a.tobytes() for n, a in with_mod.items()} == {n: a.tobytes() for n, a in without.items()}


def test_the_apps_train_function_is_the_one_of_the_app():
    """The metamorphic tests above compare two runs of this same function."""
    new = trained({name: tensor.numpy() for name, tensor in STATE.items()}, 1, 1)
    assert new["norm.num_batches_tracked"] == 8
