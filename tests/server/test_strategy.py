"""The parts of a round, and server optimizers against formulas written by hand."""

import numpy as np
import pytest
import torch
from hand_made import CODEC, LAYOUT, START, examples_of, instead, make_strategy, run, update_of

from fedq import codec
from fedq.algorithms import FedAvg
from fedq.codec import Accumulator
from fedq.server import RoundAggregate
from fedq.server.optimizer import ServerOptimizer, sgd
from fedq.server.round_aggregate import Accepted

GRADIENTS = [update_of(name, 1) for name in "012"]


def stepped(optimizer, gradients=GRADIENTS):
    """The masters after each step."""
    made = ServerOptimizer(optimizer)
    masters = [START]
    for gradient in gradients:
        masters.append(made.step(masters[-1], gradient))
    return masters[1:]


def test_fedavg_is_sgd_of_length_one():
    assert np.array_equal(stepped(sgd)[0], START - GRADIENTS[0])


def test_momentum_follows_its_formula_over_three_rounds():
    """FedAvgM: v = 0.9 v + g; w = w - 0.5 v  (arXiv:1909.06335)."""
    weights, velocity = START.astype(np.float64), np.zeros(LAYOUT.size)
    masters = stepped(lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9))
    for master, gradient in zip(masters, GRADIENTS, strict=True):
        velocity = 0.9 * velocity + gradient
        weights = weights - 0.5 * velocity
        assert np.abs(master - weights).max() < 1e-6  # some float32 roundings of values below 4


def test_adam_follows_its_formula_over_three_rounds():
    """FedAdam: arXiv:2003.00295 with the bias correction of arXiv:1412.6980, tau = 1e-3."""
    lr, b1, b2, tau = 0.1, 0.9, 0.99, 1e-3
    weights = START.astype(np.float64)
    m, v = np.zeros(LAYOUT.size), np.zeros(LAYOUT.size)
    masters = stepped(lambda p: torch.optim.Adam(p, lr=lr, betas=(b1, b2), eps=tau))
    for step, (master, gradient) in enumerate(zip(masters, GRADIENTS, strict=True), start=1):
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient.astype(np.float64) ** 2
        weights = weights - lr * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + tau)
        assert np.abs(master - weights).max() < 1e-6


def test_the_given_master_is_what_is_stepped_from():
    """The loop may hand over another vector than the last one, as after a resume."""
    made = ServerOptimizer()
    made.step(START, GRADIENTS[0])
    assert np.array_equal(made.step(START, GRADIENTS[1]), START - GRADIENTS[1])


def test_a_step_leaves_its_arguments_and_earlier_masters_alone():
    master, gradient = START.copy(), GRADIENTS[0].copy()
    made = ServerOptimizer(lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9))
    first = made.step(master, gradient)
    kept = first.copy()
    made.step(first, gradient)
    assert np.array_equal(master, START)
    assert np.array_equal(gradient, GRADIENTS[0])
    assert np.array_equal(first, kept)


def test_pseudo_gradient_is_minus_the_mean_update():
    total = RoundAggregate(LAYOUT, {"update": Accumulator(LAYOUT)})
    total.sums["update"].add_vector(np.full(LAYOUT.size, 1.0, np.float32), 3)
    total.sums["update"].add_vector(np.full(LAYOUT.size, -2.0, np.float32), 1)
    means = {"update": make_strategy().aggregation.mean(total, "update", round=1)}
    pseudo_gradient, _ = FedAvg().server_update(means, {}, participation=1.0)
    assert set(pseudo_gradient.tolist()) == {-(3 * 1.0 - 2.0) / 4}


def decoded_updates(clients, round=1):
    """What the server reads from the honest clients of `hand_made`: their updates after quantization."""
    packets = [codec.encode(update_of(n, round), CODEC, layout=LAYOUT, key=round) for n in clients]
    return np.stack([codec.decode(packet, LAYOUT) for packet in packets]).astype(np.float64)


def test_clients_weigh_as_much_as_their_examples():
    weights = np.array([examples_of(name) for name in "0123"])
    expected = START + weights @ decoded_updates("0123") / weights.sum()
    assert np.abs(run(rounds=1).outcome.master - expected).max() < 1e-6


@pytest.mark.parametrize("options", [{"weighting": "equal"}, {"private": True}])
def test_clients_weigh_the_same_if_asked_and_always_under_dp(options):
    expected = START + decoded_updates("0123").mean(0)
    assert np.abs(run(rounds=1, **options).outcome.master - expected).max() < 1e-6


def test_everyone_gets_the_same_bytes():
    requests = run(rounds=1).requests
    assert len(requests) == 4
    assert len({request.packets["model"] for _, request in requests}) == 1


def test_the_broadcast_holds_weights_of_its_round():
    header = codec.peek(run(rounds=2).requests[-1][1].packets["model"])
    assert (header.kind, header.round, header.codec, header.base) == ("weights", 2, "int8", b"")


def test_rounding_of_the_broadcast_does_not_add_up():
    """Clients that send nothing leave the float32 master as it is, however often it was quantized on the way."""
    silent = run({name: instead(update=np.zeros(LAYOUT.size, np.float32)) for name in "0123"}, rounds=5)
    assert silent.model == START.tobytes()
    assert all(round.status == "ok" for round in silent.rounds[1:])


def test_only_the_updates_that_counted_are_remembered():
    strategy = make_strategy()
    total = RoundAggregate(LAYOUT, accepted=[Accepted("1", 1.0, 0.1)])
    total.sums["update"] = codec.Accumulator(LAYOUT)
    total.sums["update"].add_vector(np.ones(LAYOUT.size, np.float32), 1.0)
    strategy.step(3, START, total)
    assert strategy.last_accepted(["0", "1"]) == {"0": -1, "1": 3}
