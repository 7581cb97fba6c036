"""FedAvg keeps no state and sends the update alone."""

import numpy as np

from fedq.algorithms import FedAvg


def test_the_update_is_what_training_moved(quadratic):
    task = quadratic(steps=1)
    assert FedAvg().client_update(task, {}) == {}
    np.testing.assert_allclose(task.sent["update"], [0.1, -0.2], rtol=1e-6)


def test_the_pseudo_gradient_is_minus_the_mean():
    gradient, state = FedAvg().server_update({"update": np.float32([2, -4])}, {}, participation=0.5)
    assert (gradient.tolist(), state) == ([-2.0, 4.0], {})


def test_it_declares_one_packet_and_no_state():
    algorithm = FedAvg()
    assert [packet.name for packet in algorithm.uplink] == ["update"]
    assert (algorithm.downlink, algorithm.client_state(3), algorithm.server_state(3)) == ((), {}, {})
