"""With everything off fedq is Flower's own FedAvg; and under Flower's own loop it gives the bits of its own loop."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from own_loop import trained

from fedq.app.answer import client_app
from fedq.core.randomness import generator, key64
from fedq.flower.grid import InProcessGrid
from fedq.server import CyclicSampler, FlowerLoop
from fedq.server.flower_loop import arrays_of

pytestmark = pytest.mark.integration

ROUNDS = 4


def record_of(layout, vector):
    return ArrayRecord({name: torch.from_numpy(array) for name, array in layout.unflatten(vector).items()})


def grid_of(app, experiment):
    return InProcessGrid(app, len(experiment.identities))


def plain_clients(experiment):
    """What a Flower user writes: train on the arrays, send the new arrays and the number of examples."""
    app, trainer, layout, seed = ClientApp(), experiment.trainer, experiment.layout, experiment.config.seed

    @app.train()
    def train(message: Message, context: Context) -> Message:
        name, round = str(context.node_config["partition-id"]), message.content["config"]["server-round"]
        fitted = trainer.fit(
            layout.flatten(arrays_of(message.content["arrays"])),
            experiment.dataset.train[experiment.shards[name]],
            round=round,
            batches=generator(seed, "batches", round, name),
            torch_seed=key64(seed, "torch", round, name),
        )
        told = {"arrays": record_of(layout, fitted.vector), "m": MetricRecord({"num-examples": fitted.num_examples})}
        return Message(RecordDict(told), reply_to=message)

    return app


@pytest.mark.parametrize("model", [["model=mlp"], ["model=mlp", "strategy.max_weight=1000", "train.lr=0.5"]])
def test_with_all_off_the_model_is_that_of_flowers_fedavg(experiment, tmp_path, model):
    plain = experiment("codec=float32", f"rounds={ROUNDS}", *model)
    flower = FedAvg(fraction_evaluate=0.0, min_train_nodes=6, min_available_nodes=6)
    theirs = flower.start(
        grid_of(plain_clients(plain), plain), record_of(plain.layout, plain.initial), num_rounds=ROUNDS
    )
    expected = plain.layout.flatten(arrays_of(theirs.arrays))
    ours = trained(plain, tmp_path, cohort=6)
    assert np.abs(expected - plain.initial).max() > 1e-2  # there was something to learn
    assert np.abs(ours - expected).max() < 1e-6


@pytest.mark.parametrize(
    "overrides",
    [
        ["codec=float32"],
        ["codec=int8", "codec.rounding=stochastic", "codec.error_feedback=true", "codec.block=64", "fraction=0.5"],
        ["codec=float16", "strategy=fedavgm", "fraction=0.34"],
        ["codec=sign", "codec.error_feedback=true", "downlink.name=int2", "downlink.kind=delta", "fraction=0.67"],
    ],
)
def test_under_flowers_own_loop_the_bits_are_the_same(experiment, tmp_path, overrides):
    ours = experiment(f"rounds={ROUNDS}", *overrides)
    clients = {}

    def client_of(context):
        name = str(context.node_config["partition-id"])
        return clients.setdefault(name, ours.client(name, folder=tmp_path / name))

    strategy = ours.strategy()
    grid = grid_of(client_app(client_of), ours)
    theirs = FlowerLoop(strategy, fraction=ours.config.fraction).start(
        grid, record_of(ours.layout, ours.initial), num_rounds=ROUNDS
    )
    cohort = max(1, int(ours.config.fraction * 6))
    expected = trained(ours, tmp_path / "own", cohort=cohort)
    assert ours.layout.flatten(arrays_of(theirs.arrays)).tobytes() == expected.tobytes()
    asked = {
        name for round in range(1, ROUNDS + 1) for name in CyclicSampler(ours.identities, seed=0).cohort(round, cohort)
    }
    assert set(clients) == set(ours.identities) >= asked


def test_error_feedback_and_rounding_have_a_say_in_those_bits(experiment, tmp_path):
    """Else the test above would not see them."""
    int8 = ["codec=int8", "codec.rounding=stochastic", f"rounds={ROUNDS}", "fraction=0.5"]
    plain = trained(experiment(*int8), tmp_path / "1", cohort=3)
    fed_back = trained(experiment(*int8, "codec.error_feedback=true"), tmp_path / "2", cohort=3)
    assert plain.tobytes() != fed_back.tobytes()


def test_a_hostile_reply_does_not_end_flowers_loop(experiment, tmp_path):
    """Flower's own FedAvg ends the run on an unknown key; under its loop, too, fedq drops such a reply."""
    ours = experiment("codec=int8", "rounds=2")
    honest = client_app(lambda context: ours.client(str(context.node_config["partition-id"]), folder=tmp_path))

    def app(message, context):
        reply = honest(message, context)
        if context.node_config["partition-id"] == 2 and message.metadata.message_type == "train":
            reply.content["extra"] = MetricRecord({"age": 41})
        return reply

    strategy = ours.strategy()
    result = FlowerLoop(strategy, fraction=ours.config.fraction).start(
        grid_of(app, ours), record_of(ours.layout, ours.initial), num_rounds=2
    )
    assert [dict(metrics) for metrics in result.train_metrics_clientapp.values()] == [{"clients": 5, "lost": 1}] * 2
    assert np.isfinite(ours.layout.flatten(arrays_of(result.arrays))).all()


def test_too_few_replies_leave_the_model_to_flower_as_it_was(experiment, tmp_path):
    ours = experiment("codec=float32", "strategy.min_clients=6", "rounds=1")
    honest = client_app(lambda context: ours.client(str(context.node_config["partition-id"]), folder=tmp_path))

    def app(message, context):
        if context.node_config["partition-id"] == 2 and message.metadata.message_type == "train":
            raise RuntimeError("no power")
        return honest(message, context)

    strategy = ours.strategy()
    seen = {}

    def look(round, arrays):
        seen[round] = ours.layout.flatten(arrays_of(arrays)).tobytes()

    grid, start = grid_of(app, ours), record_of(ours.layout, ours.initial)
    FlowerLoop(strategy, fraction=ours.config.fraction).start(grid, start, num_rounds=1, evaluate_fn=look)
    assert seen == {0: ours.initial.tobytes(), 1: ours.initial.tobytes()}
