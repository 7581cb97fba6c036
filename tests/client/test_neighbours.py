"""Neighbouring shards are answered alike: nothing public is a function of how much data a client holds."""

import numpy as np
import pytest
import torch
from torch import nn

from fedq import codec
from fedq.client import Client, ClientState, Privacy
from fedq.data import Examples
from fedq.flower import wire
from fedq.flower.private import serialized
from fedq.privacy import DPPlan, Ledger, SecureRandom
from fedq.training import Recipe, Trainer, layout_of, read_vector

PLAN = DPPlan(
    noise_multiplier=1.0,
    clip_norm=1.0,
    sample_rate=0.02,
    steps=1,
    nominal_examples=100,
    target_epsilon=float("inf"),
    delta=1e-5,
)


@pytest.fixture
def trainer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2))
    return Trainer(model, layout_of(model), Recipe(batch_size=2, optimizer="SGD", lr=0.1, rounds=1, steps=1))


@pytest.mark.parametrize("pairs", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_neighbours_cannot_be_told_apart_by_anything_public(pairs, trainer, tmp_path, monkeypatch):
    """Shards of n and n - 1: rate, divisor, steps and noise as spent; fields, length and weight as sent."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(2000, 3)).astype(np.float32)
    everything = Examples(inputs, (inputs[:, 0] > 0).astype(np.int64))
    start = read_vector(trainer.model, trainer.layout)
    packet = codec.encode(start, "int8", layout=trainer.layout, kind="weights", round=1)
    request = wire.Request(1, -1, {"model": packet})
    # The ledger's syncs, tested elsewhere, are most of a spend: one ledger in memory-like haste for both.
    spent = []
    monkeypatch.setattr(Ledger, "spend", lambda self, spend, guard=None: spent.append(spend) or len(spent))

    def answer(size):
        client = Client(
            "0",
            trainer,
            codec.Int8(),
            shard=lambda: everything[:size],
            state=ClientState(None),
            seed=0,
            privacy=Privacy(PLAN, tmp_path / "ledger.sqlite", SecureRandom(), "data", "run"),
        )
        content = wire.write_reply(client.train(request))
        reply = wire.read_reply(content, round=1, packets=frozenset({"update"}), metrics=frozenset())
        header = codec.peek(reply.packets["update"])
        public = {name: sorted(record) for name, record in content.items()}
        return public, len(reply.packets["update"]), header.layout, reply.num_examples, reply.loss, spent[-1]

    for n in random.integers(1, 2000, size=pairs):
        assert answer(int(n)) == answer(int(n) - 1)
    assert len(spent) == 2 * pairs
    assert {s.sample_rate * s.nominal_examples for s in spent} == {PLAN.divisor}


def test_a_reply_s_message_is_as_long_for_an_empty_shard(trainer, tmp_path):
    from flwr.app import Message

    from fedq.flower import private as flower

    flower.enter()
    sizes = set()
    for size in (0, 1, 500):
        inputs = np.zeros((size, 3), np.float32)
        client = Client(
            "0",
            trainer,
            codec.Int8(),
            shard=lambda inputs=inputs: Examples(inputs, np.zeros(len(inputs), np.int64)),
            state=ClientState(None),
            seed=0,
            privacy=Privacy(PLAN, tmp_path / f"{size}.sqlite", SecureRandom(), "data", "run"),
        )
        start = read_vector(trainer.model, trainer.layout)
        packet = codec.encode(start, "int8", layout=trainer.layout, kind="weights", round=1)
        content = wire.write_reply(client.train(wire.Request(1, -1, {"model": packet})))
        sizes.add(len(serialized(Message(content, dst_node_id=1, message_type=wire.TRAIN))))
    assert len(sizes) == 1
