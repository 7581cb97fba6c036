"""One client's part of a round: what it sends, what it keeps, and what it refuses before any data is opened."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from fedq import codec
from fedq.client import ClientState, Privacy
from fedq.codec import Float32, Int8, MalformedUpdate
from fedq.core.randomness import generator, key64
from fedq.flower import wire
from fedq.privacy import Declined, DPPlan, Ledger, LedgerError, SeededRandom


class OpenedError(Exception):
    """The shard was opened."""


def locked_shard():
    raise OpenedError


def fitted(trainer, examples, weights, round, identity="3"):
    """Local training apart from the client: the oracle for what it sends."""
    return trainer.fit(
        weights,
        examples,
        round=round,
        batches=generator(0, "batches", round, identity),
        torch_seed=key64(0, "torch", round, identity),
    ).vector


def sent(reply, layout):
    return codec.decode(reply.packets["update"], layout)


# --- what is sent -----------------------------------------------------------------------------------------


def test_the_update_is_what_training_changed(make_client, ask, trainer, examples, start):
    reply = make_client(codec=Float32()).train(ask(1))
    assert np.array_equal(sent(reply, trainer.layout), fitted(trainer, examples, start, 1) - start)


def test_the_update_is_against_what_was_decoded_not_what_the_server_holds(make_client, ask, trainer, examples, start):
    """The broadcast is lossy: its rounding error is not the client's change."""
    lossy = wire.Request(1, -1, {"model": codec.encode(start, "int8", layout=trainer.layout, kind="weights", round=1)})
    decoded = codec.decode(lossy.packets["model"], trainer.layout)
    reply = make_client(codec=Float32()).train(lossy)
    assert not np.array_equal(decoded, start)
    assert np.array_equal(sent(reply, trainer.layout), fitted(trainer, examples, decoded, 1) - decoded)


def test_the_packet_names_its_round_its_kind_and_its_base(make_client, ask, start):
    header = codec.peek(make_client().train(ask(4)).packets["update"])
    assert (header.round, header.kind, header.base) == (4, "delta", codec.digest(start))


def test_examples_and_loss_are_told(make_client, ask):
    reply = make_client().train(ask(1))
    assert reply.num_examples == 40
    assert math.isfinite(reply.loss)


def test_the_same_request_gives_the_same_bytes(make_client, ask):
    assert make_client().train(ask(1)) == make_client().train(ask(1))


@pytest.mark.parametrize("different", [{"identity": "4"}, {"seed": 1}])
def test_clients_and_seeds_draw_differently(make_client, ask, different):
    assert make_client().train(ask(1)).packets != make_client(**different).train(ask(1)).packets


class Parted:
    """A trainer that notes the examples it is given."""

    def __init__(self, trainer, trained_on, evaluated_on):
        self._trainer, self._trained_on, self._evaluated_on = trainer, trained_on, evaluated_on

    def __getattr__(self, name):
        return getattr(self._trainer, name)

    def fit(self, weights, examples, **options):
        self._trained_on.append(examples.inputs.copy())
        return self._trainer.fit(weights, examples, **options)

    def evaluate(self, weights, examples):
        self._evaluated_on.append(examples.inputs.copy())
        return self._trainer.evaluate(weights, examples)


def test_a_quarter_of_forty_examples_is_held_out_for_every_evaluation_and_never_trained_on(
    make_client, ask, trainer, examples
):
    trained_on, evaluated_on = [], []
    client = make_client(trainer=Parted(trainer, trained_on, evaluated_on))
    for round in (1, 2):
        assert client.train(ask(round, holdout=0.25)).num_examples == 30
        assert client.evaluate(ask(round, holdout=0.25)).num_examples == 10
    assert np.array_equal(trained_on[0], trained_on[1])
    assert np.array_equal(evaluated_on[0], evaluated_on[1])
    together = np.concatenate([trained_on[0], evaluated_on[0]])
    assert {row.tobytes() for row in together} == {row.tobytes() for row in examples.inputs}


def test_where_nothing_is_to_be_held_out_all_is_trained_on(make_client, ask):
    assert make_client().train(ask(1)).num_examples == 40


def test_a_client_with_one_example_trains_on_it(make_client, ask, examples):
    assert make_client(shard=lambda: examples[:1]).train(ask(1, holdout=0.5)).num_examples == 1


# --- error feedback ---------------------------------------------------------------------------------------


FEEDBACK = Int8(block=64, rounding="stochastic", error_feedback=True)


def lost(update, packet, layout):
    return update - codec.decode(packet, layout)


def test_what_rounding_lost_is_added_to_the_next_update(make_client, ask, trainer, examples, start):
    client, layout = make_client(codec=FEEDBACK), trainer.layout
    first = client.train(ask(1))
    residual = lost(fitted(trainer, examples, start, 1) - start, first.packets["update"], layout)
    second = client.train(ask(2, accepted=1))
    update = fitted(trainer, examples, start, 2) - start + residual
    scale = np.abs(update).max() / 127  # no block has a larger one
    assert np.abs(residual).max() > 0
    assert np.array_equal(client.state.residual(2), lost(update, second.packets["update"], layout))
    assert np.abs(sent(second, layout) - update).max() <= 1.001 * scale


def test_a_dropped_update_is_not_counted_twice(make_client, ask, trainer, examples, start):
    """Round 2 was dropped: in round 3 the client adds what round 1 lost, as if round 2 had never been."""
    dropped, absent = make_client(codec=FEEDBACK), make_client(codec=FEEDBACK, state=ClientState())
    for client in (dropped, absent):
        client.train(ask(1))
    dropped.train(ask(2, accepted=1))
    assert dropped.train(ask(3, accepted=1)) == absent.train(ask(3, accepted=1))


def test_a_dropped_first_update_leaves_no_residual(make_client, ask):
    dropped, absent = make_client(codec=FEEDBACK), make_client(codec=FEEDBACK, state=ClientState())
    dropped.train(ask(1))
    assert dropped.train(ask(2, accepted=-1)) == absent.train(ask(2, accepted=-1))


def test_accepted_updates_and_the_last_residual_add_up_to_all_training(make_client, ask, trainer, examples, start):
    """What feedback promises: nothing is lost for good, over 6 rounds of which one is dropped."""
    client, layout = make_client(codec=FEEDBACK), trainer.layout
    accepted, counted = -1, np.zeros(layout.size, np.float64)
    trained = np.zeros(layout.size, np.float64)
    for round in range(1, 7):
        reply = client.train(ask(round, accepted=accepted))
        if round != 3:
            counted += sent(reply, layout)
            trained += fitted(trainer, examples, start, round) - start
            accepted = round
    # Float32 additions of values below 2: 6 rounds of 2^-23 each.
    assert np.abs(counted + client.state.residual(6) - trained).max() < 6 * 2.0**-22


def test_without_feedback_nothing_is_kept(make_client, ask):
    client = make_client()
    client.train(ask(1))
    assert client.state.residual(1) is None


def test_a_failed_encoding_keeps_the_residual(make_client, ask, trainer):
    """An update that never left must not replace what the last one lost."""
    client = make_client(codec=FEEDBACK)
    client.train(ask(1))
    before = client.state.residual(1).copy()
    huge = np.full(trainer.layout.size, 3e38, np.float32)
    with pytest.raises(ValueError, match="must be finite"):
        client.train(ask(2, accepted=1, weights=huge))
    assert np.array_equal(client.state.residual(1), before)


# --- changes in place of weights --------------------------------------------------------------------------


class Server:
    """Sends a client weights in round 1 and then changes, drawn, of every round since."""

    def __init__(self, layout, start):
        self.layout, self.held, self.round, self.deltas = layout, start, 1, []

    def step(self):
        """A round in which the model changes."""
        self.round += 1
        change = generator(0, "change", self.round).normal(scale=0.01, size=self.layout.size).astype(np.float32)
        header = {"layout": self.layout, "kind": "delta", "round": self.round, "base": codec.digest(self.held)}
        self.deltas.append(codec.encode(change, "int8", **header))
        self.held = self.held + codec.decode(self.deltas[-1], self.layout)

    def ask(self, deltas=None, **packets):
        """A request of the last round; `deltas`: others than all there are."""
        told = wire.name_deltas(self.deltas if deltas is None else deltas)
        return wire.Request(self.round, -1, {**told, **packets})


@pytest.fixture
def server(trainer, start):
    return Server(trainer.layout, start)


@pytest.fixture
def holder(make_client, ask):
    """A client that holds the weights of round 1, and never opens its data again."""
    client = make_client(keeps_weights=True)
    client.train(ask(1))
    return replace(client, shard=locked_shard)


@pytest.mark.parametrize("missed", [0, 1, 3])
def test_changes_are_applied_one_after_the_other(make_client, ask, server, missed):
    client = make_client(keeps_weights=True)
    client.train(ask(1))
    for _ in range(1 + missed):
        server.step()
    reply = client.train(server.ask())
    assert codec.peek(reply.packets["update"]).base == codec.digest(server.held)
    assert np.array_equal(client.state.weights, server.held)


def test_an_update_is_the_same_whether_weights_or_changes_brought_the_model(make_client, ask, server):
    client, other = make_client(keeps_weights=True), make_client(state=ClientState())
    client.train(ask(1))
    server.step()
    assert client.train(server.ask()) == other.train(ask(2, weights=server.held))


def test_changes_may_follow_changes(make_client, ask, server):
    client = make_client(keeps_weights=True)
    client.train(ask(1))
    for _ in range(3):
        server.step()
        client.train(server.ask(server.deltas[-1:]))
    assert np.array_equal(client.state.weights, server.held)


def test_changes_are_evaluated_too(make_client, ask, server):
    client, other = make_client(keeps_weights=True), make_client(state=ClientState())
    client.train(ask(1, holdout=0.25))
    server.step()
    told = client.evaluate(replace(server.ask(), holdout=0.25))
    assert told == other.evaluate(ask(2, weights=server.held, holdout=0.25))


def test_where_the_server_sends_weights_none_are_kept(make_client, ask):
    client = make_client(codec=FEEDBACK)
    client.train(ask(1))
    assert client.state.weights is None


def test_changes_that_are_delivered_again_give_the_same_bytes(make_client, ask, server):
    client = make_client(codec=FEEDBACK, keeps_weights=True)
    client.train(ask(1))
    server.step()
    first = client.train(server.ask())
    assert client.train(server.ask()) == first
    server.step()
    client.train(server.ask(server.deltas[-1:]))
    assert np.array_equal(client.state.weights, server.held)


@pytest.mark.parametrize("name", ["changes", "weights"])
def test_a_message_of_an_earlier_round_that_is_delivered_late_is_refused_unopened(holder, ask, server, name):
    server.step()
    late = server.ask()
    server.step()
    with pytest.raises(OpenedError):
        holder.train(server.ask())
    holder.state.commit(3, None, None, server.held)
    with pytest.raises(ValueError, match=r"^round: round 2 after round 3"):
        holder.train(late if name == "changes" else ask(2))
    assert np.array_equal(holder.state.weights, server.held)


MISFITS = {
    "a round is left out": (lambda s: s.ask(s.deltas[1:]), "base: packet against base"),
    "in another order": (lambda s: s.ask(s.deltas[::-1]), "base: packet against base"),
    "the last is of an earlier round": (lambda s: s.ask(s.deltas[:1]), "round: packet of round 2: expected round 3"),
    "a number is left out": (lambda s: replace(s.ask(), packets={"delta.0": b"", "delta.2": b""}), "missing_key: "),
    "weights beside them": (lambda s: s.ask(model=s.deltas[0]), "missing_key: "),
    "another packet beside them": (lambda s: s.ask(update=s.deltas[0]), "missing_key: "),
    "bytes that are no packet": (lambda s: s.ask([b"noise" * 20, *s.deltas[1:]]), "magic: "),
    "weights in place of changes": (
        lambda s: s.ask([codec.encode(s.held, "int8", layout=s.layout, kind="weights", round=3)]),
        "kind: packet of kind weights: expected delta",
    ),
}


@pytest.mark.parametrize("task", ["train", "evaluate"])
@pytest.mark.parametrize("name", MISFITS)
def test_changes_that_do_not_fit_are_refused_unopened_and_what_is_held_stays(holder, server, start, name, task):
    make, reason = MISFITS[name]
    server.step()
    server.step()
    with pytest.raises(ValueError, match=f"^{reason}"):
        getattr(holder, task)(make(server))
    assert np.array_equal(holder.state.weights, start)


def test_changes_are_refused_unopened_where_nothing_is_held(make_client, server):
    server.step()
    with pytest.raises(MalformedUpdate, match=r"^base: changes, and this client holds no weights"):
        make_client(shard=locked_shard, keeps_weights=True).train(server.ask())


def test_changes_are_refused_unopened_where_another_model_s_weights_are_held(holder, server):
    holder.state.commit(1, None, None, np.zeros(7, np.float32))
    server.step()
    with pytest.raises(MalformedUpdate, match=r"^base: changes, and this client holds no weights"):
        holder.train(server.ask())


def test_a_failed_encoding_keeps_the_weights(make_client, ask, trainer, start):
    client = make_client(keeps_weights=True)
    client.train(ask(1))
    with pytest.raises(ValueError, match="must be finite"):
        client.train(ask(2, weights=np.full(trainer.layout.size, 3e38, np.float32)))
    assert np.array_equal(client.state.weights, start)


def test_each_message_may_meet_a_new_process(make_client, ask, server, tmp_path):
    """What one process was sent, the next one builds on."""

    def process():
        return make_client(codec=FEEDBACK, keeps_weights=True, state=ClientState(tmp_path / "disk", durable=True))

    one = make_client(codec=FEEDBACK, keeps_weights=True, state=ClientState())
    assert process().train(ask(1)) == one.train(ask(1))
    for _ in range(3):
        server.step()
        request = replace(server.ask(server.deltas[-1:]), accepted=server.round - 1)
        assert process().train(request) == one.train(request)
    assert process().train(request) == one.train(request)  # delivered again


# --- what is refused before data is opened ----------------------------------------------------------------


@pytest.mark.parametrize("task", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("header", "reason"),
    [({"round": 9}, "round"), ({"kind": "delta"}, "kind"), ({"layout": codec.Layout.flat(530)}, "layout")],
)
def test_a_broadcast_that_does_not_fit_is_refused_unopened(make_client, ask, task, header, reason):
    request = ask(1, weights=np.zeros(530, np.float32), header=header)
    client = make_client(shard=locked_shard)
    with pytest.raises(MalformedUpdate, match=f"^{reason}: "):
        getattr(client, task)(request)


@pytest.mark.parametrize("task", ["train", "evaluate"])
def test_a_request_without_a_model_is_refused_unopened(make_client, task):
    client = make_client(shard=locked_shard)
    with pytest.raises(wire.MalformedReply, match=r"^missing_key: a request brings model, or delta\.0"):
        getattr(client, task)(wire.Request(1, -1, {"weights": b""}))


PLAN = DPPlan(
    noise_multiplier=4.0,
    clip_norm=1.0,
    sample_rate=0.5,
    steps=2,
    nominal_examples=40,
    target_epsilon=8.0,
    delta=1e-5,
    accountant="rdp",
)


@pytest.fixture
def private(tmp_path):
    return Privacy(PLAN, tmp_path / "ledger.sqlite", SeededRandom(1), "forty examples", "run-1")


def test_a_client_without_budget_declines_unopened(make_client, ask, private):
    # One round at this noise costs far more than 0.01.
    spent = replace(private, plan=replace(PLAN, target_epsilon=0.01))
    with pytest.raises(Declined, match=r"^budget: "):
        make_client(privacy=spent, shard=locked_shard).train(ask(1))
    assert Ledger(private.ledger).rows() == []


def test_a_client_whose_ledger_is_damaged_declines_unopened(make_client, ask, private):
    private.ledger.write_bytes(b"not a ledger" * 100)
    with pytest.raises(LedgerError, match="not a complete ledger"):
        make_client(privacy=private, shard=locked_shard).train(ask(1))


def test_the_model_is_looked_at_before_the_budget_is_touched(make_client, private):
    with pytest.raises(wire.MalformedReply, match=r"^missing_key"):
        make_client(privacy=private).train(wire.Request(1, -1, {}))
    assert not private.ledger.exists()


def test_under_dp_only_the_packet_is_sent(make_client, ask, private):
    reply = make_client(privacy=private).train(ask(1))
    assert (reply.num_examples, reply.loss, reply.metric) == (None, None, None)
    assert wire.fields_of(wire.write_reply(reply)) <= wire.PUBLIC_FIELDS


def test_the_spend_is_in_the_ledger_and_the_evidence_points_to_it(make_client, ask, private, tmp_path):
    make_client(privacy=private).train(ask(1))
    (row,) = Ledger(private.ledger).rows()
    (line,) = (tmp_path / "3" / "evidence.jsonl").read_text().splitlines()
    assert json.loads(line)["spend_row_id"] == row.id
    assert (row.spend.round, row.spend.run, row.spend.data) == (1, "run-1", "forty examples")


def test_under_dp_a_request_to_hold_examples_out_is_refused_unopened(make_client, ask, private):
    with pytest.raises(wire.MalformedReply, match=r"the request holds out 0.1 of the examples, this client 0"):
        make_client(privacy=private, shard=locked_shard).train(ask(1, holdout=0.1))


def test_an_evaluation_is_refused_under_dp(make_client, ask, private):
    with pytest.raises(PermissionError, match="not covered by this client's privacy plan"):
        make_client(privacy=private, shard=locked_shard).evaluate(ask(1))
