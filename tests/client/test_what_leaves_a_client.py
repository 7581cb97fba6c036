"""A tap on the network: all that leaves a client under DP is public configuration or noise, also when it fails."""

import numpy as np
import pytest
from flwr.app import Message
from torch import nn

from fedq import codec
from fedq.app.answer import client_app
from fedq.experiment import build
from fedq.flower import wire
from fedq.flower.grid import InProcessGrid
from fedq.flower.private import serialized
from fedq.server import CyclicSampler, Rules, run_rounds, say_hello
from fedq.server.link import counted
from fedq.server.loop import Scores
from fedq.server.meter import Meter
from fedq.server.roster import grid_exchange
from tests.quick import compose

pytestmark = pytest.mark.integration

PATH, VALUE = "/srv/patients/record-41.csv", "glucose=187.5"
DP = [
    "privacy.nominal_examples=100",
    "privacy=example",
    "privacy.noise=seeded",
    "privacy.accountant=rdp",
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=4",
    "train.epochs=null",
    "train.steps=1",
]


class Tapped(InProcessGrid):
    """Keeps every message that leaves a client: as it is, and as the bytes that cross the network."""

    uplink: list[Message]

    def stream(self, messages):
        self.uplink = getattr(self, "uplink", [])
        for reply in super().stream(messages):
            self.uplink.append(reply)
            yield reply

    @property
    def fields(self):
        return set().union(*(wire.fields_of(message.content) for message in self.uplink))

    @property
    def bytes(self):
        return b"".join(serialized(message) for message in self.uplink)


def plain(input_shape, num_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), 8), nn.Tanh(), nn.Linear(8, num_outputs))


class Talkative(nn.Module):
    """A user's model whose training fails with a text that must stay where the data is."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layers = plain(input_shape, num_outputs)

    def forward(self, inputs):
        if self.training and len(inputs) != 2:  # not where made-up pairs of examples probe it
            raise ValueError(f"cannot train on {PATH}: {VALUE}")
        return self.layers(inputs)


@pytest.fixture(scope="module")
def data():
    from fedq.data import digits

    return digits()


def tapped_run(folder, data, *overrides, model=plain, rounds=2):
    """Some rounds with 3 clients over a tapped grid, their log and outcome."""
    usual = ["clients=3", f"rounds={rounds}", "codec=int8", "quant=off"]
    experiment = build(compose([*usual, *overrides]), model=model, data=data)
    strategy = experiment.strategy()
    clients = {}

    def client_of(context):
        name = str(context.node_config["partition-id"])
        return clients.setdefault(name, experiment.client(name, folder=folder / name, run="run"))

    grid, meter = Tapped(client_app(client_of), 3), Meter(experiment.layout)
    exchange = counted(grid_exchange(grid), meter)
    roster = say_hello(
        exchange,
        grid.get_node_ids(),
        version=strategy.terms.version,
        formats=codec.FORMATS,
        layout=strategy.layout.digest,
        timeout=1,
    )

    def gather(round, broadcast, accepted):
        replies = exchange(strategy.messages(round, broadcast, accepted, roster), 1)
        return strategy.collect(round, replies, list(accepted), roster, broadcast)

    log = []
    run_rounds(
        strategy=strategy,
        sampler=CyclicSampler(list(roster.nodes), seed=0),
        master=experiment.initial,
        gather=gather,
        score=lambda round, master: Scores(),
        watch=log.append,
        rules=Rules(rounds, 3),
        hello=meter.take(),
    )
    return grid, log


def test_under_dp_every_field_of_every_message_is_public(tmp_path, data):
    grid, log = tapped_run(tmp_path, data, *DP)
    assert [len(round.accepted) for round in log] == [0, 3, 3]
    assert grid.fields == {field for field in wire.PUBLIC_FIELDS if "refusal" not in field and "counts" not in field}


def test_under_dp_a_pruned_model_brings_no_field_more(tmp_path, data):
    sparse = ["quant=int8", "quant.weight_range=63", "quant.sparsity=0.9"]
    grid, log = tapped_run(tmp_path, data, *DP, *sparse, rounds=4)
    assert [round.sparsity for round in log[2:]] == [461 / 512] * 3
    assert [len(round.accepted) for round in log] == [0, 3, 3, 3, 3]
    assert grid.fields == {field for field in wire.PUBLIC_FIELDS if "refusal" not in field and "counts" not in field}


def test_without_dp_fields_are_sent_that_are_not_public(tmp_path, data):
    """Else the test above would pass with a blind tap."""
    grid, _ = tapped_run(tmp_path, data, "train.epochs=0.1")
    assert grid.fields - wire.PUBLIC_FIELDS == {"fedq.metrics.num_examples", "fedq.metrics.loss"}


def test_under_dp_all_replies_of_a_round_have_the_same_length(tmp_path, data):
    """Shards of different sizes must not be told apart by what they send."""
    skewed = ["partition=dirichlet", "partition.alpha=0.3", "partition.min_size=5"]
    grid, _ = tapped_run(tmp_path, data, *DP, *skewed, rounds=1)
    lengths = {len(serialized(m)) for m in grid.uplink if m.metadata.message_type == wire.TRAIN}
    assert len(lengths) == 1


@pytest.mark.parametrize("privacy", [DP, ["train.epochs=0.1"]], ids=["private", "plain"])
def test_the_text_of_an_error_stays_with_the_client(tmp_path, data, privacy):
    grid, log = tapped_run(tmp_path, data, *privacy, model=Talkative)
    reasons = [rejected.reason for round in log[1:] for rejected in round.rejected]
    assert reasons == ["declined" if "privacy=example" in privacy else "client_error"] * 6
    for secret in (PATH, "patients", VALUE, "187.5", "ValueError", "Traceback", str(tmp_path)):
        assert secret.encode() not in grid.bytes
    assert grid.fields <= wire.PUBLIC_FIELDS


def test_the_operator_of_a_client_finds_the_text(tmp_path, data):
    tapped_run(tmp_path, data, "train.epochs=0.1", model=Talkative, rounds=1)
    for name in "012":
        text = (tmp_path / name / "log.txt").read_text()
        assert f"cannot train on {PATH}: {VALUE}" in text
        assert "round=1 refused: client_error" in text


def test_a_client_out_of_budget_says_that_alone(tmp_path, data):
    """One round costs about 1 at this noise: the second would be too much, and the run then ends."""
    once = [*DP, "privacy.target_epsilon=1.2", "privacy.sample_rate=0.3"]
    grid, log = tapped_run(tmp_path, data, *once, rounds=60)
    assert {rejected.reason for round in log for rejected in round.rejected} == {"budget"}
    assert log[-1].status == "skipped"
    assert len(log) < 61
    assert grid.fields == wire.PUBLIC_FIELDS - {"fedq.refusal.identity", "fedq.counts.right", "fedq.counts.wrong"}
    assert [dict(m.content["fedq.refusal"]) for m in grid.uplink[-3:]] == [
        {"round": log[-1].number, "reason": "budget"}
    ] * 3


@pytest.mark.parametrize("garbage", [b"", b"noise", bytes(500)])
def test_a_request_that_cannot_be_read_is_answered_with_a_code(tmp_path, data, garbage):
    experiment = build(compose(["clients=2"]), model=plain, data=data)
    app = client_app(lambda context: experiment.client("0", folder=tmp_path))
    grid = Tapped(app, 1)
    request = wire.write_request(wire.Request(1, -1, {"model": garbage}))
    (reply,) = grid.stream([Message(request, dst_node_id=1, message_type=wire.TRAIN)])
    assert dict(reply.content["fedq.refusal"]) == {"round": 1, "reason": "bad_request"}


def test_under_dp_an_evaluation_is_answered_with_a_code(tmp_path, data):
    experiment = build(compose(["clients=2", *DP]), model=plain, data=data)
    app = client_app(lambda context: experiment.client("0", folder=tmp_path))
    grid = Tapped(app, 1)
    snapshot = experiment.strategy().snapshot(experiment.initial, 1)
    request = wire.write_request(wire.Request(1, -1, snapshot.packets("0")))
    (reply,) = grid.stream([Message(request, dst_node_id=1, message_type=wire.EVALUATE)])
    assert grid.fields <= wire.PUBLIC_FIELDS
    assert dict(reply.content["fedq.refusal"]) == {"round": 1, "reason": "declined"}
