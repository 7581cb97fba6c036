"""A client's state of an algorithm: it counts only if the server accepted what was sent, and outlives the process."""

from dataclasses import dataclass

import numpy as np
import pytest

from fedq import codec
from fedq.algorithms import UPDATE, FedAvg, Scaffold
from fedq.client import ClientState
from fedq.flower import wire


@pytest.fixture
def ask_scaffold(ask, start, trainer):
    """A request of SCAFFOLD, whose shared control variate is `shared` everywhere."""

    def make(round, *, accepted=-1, shared=0.0):
        request = ask(round, accepted=accepted)
        vector = np.full(trainer.layout.size, shared, np.float32)
        base = codec.digest(start)
        control = codec.encode(vector, "float32", layout=trainer.layout, kind="weights", round=round, base=base)
        return wire.Request(round, accepted, {**request.packets, "control": control})

    return make


def test_both_packets_are_sent(make_client, ask_scaffold):
    reply = make_client(algorithm=Scaffold()).train(ask_scaffold(1))
    assert set(reply.packets) == {"update", "control"}


def test_the_state_after_an_accepted_update_is_the_new_one_and_after_a_dropped_one_the_old(make_client, ask_scaffold):
    client = make_client(algorithm=Scaffold())
    client.train(ask_scaffold(1))
    first = client.state.algorithm(1)["control"]
    assert first.any()
    client.train(ask_scaffold(2, accepted=1))
    assert np.array_equal(client.state.algorithm(1)["control"], first)
    assert not np.array_equal(client.state.algorithm(2)["control"], first)


def test_a_client_whose_first_update_was_dropped_begins_anew(make_client, ask_scaffold):
    """Both rounds send the same control packet but for the header: the variate is zero again."""
    client = make_client(algorithm=Scaffold())
    client.train(ask_scaffold(1))
    client.train(ask_scaffold(2, accepted=-1))
    assert not client.state.algorithm(-1)["control"].any()


def test_the_next_process_goes_on_from_the_same_state(make_client, ask_scaffold, tmp_path):
    client = make_client(algorithm=Scaffold(), state=ClientState(tmp_path / "kept", durable=True))
    client.train(ask_scaffold(1))
    other = ClientState(tmp_path / "kept", durable=True)
    with other.exclusive():
        assert np.array_equal(other.algorithm(1)["control"], client.state.algorithm(1)["control"])


def test_a_request_without_the_control_variate_is_refused_before_any_data_is_opened(make_client, ask):
    def opened():
        raise AssertionError("the data were opened")

    with pytest.raises(wire.MalformedReply, match="missing_key"):
        make_client(algorithm=Scaffold(), shard=opened).train(ask(1))


def test_a_control_variate_for_another_model_is_refused(make_client, ask_scaffold, trainer):
    request = ask_scaffold(1)
    vector = np.zeros(trainer.layout.size, np.float32)
    other = codec.encode(vector, "float32", layout=trainer.layout, kind="weights", round=1, base=b"c" * 16)
    with pytest.raises(codec.MalformedUpdate, match="base"):
        make_client(algorithm=Scaffold()).train(wire.Request(1, -1, {**request.packets, "control": other}))


def test_a_packet_of_another_algorithm_is_refused(make_client, ask_scaffold):
    with pytest.raises(wire.MalformedReply):
        make_client().train(ask_scaffold(1))


@dataclass(frozen=True)
class Silent(FedAvg):
    def client_update(self, task, state):
        task.send(UPDATE, np.zeros_like(task.weights))
        return state


def test_an_algorithm_that_does_not_train_is_an_error(make_client, ask):
    with pytest.raises(RuntimeError, match="must call fit, and send every packet"):
        make_client(algorithm=Silent()).train(ask(1))


def test_with_a_zero_correction_the_bits_are_those_of_no_correction(make_client, ask_scaffold, ask):
    """In its first round SCAFFOLD's update is that of FedAvg."""
    plain = make_client().train(ask(1)).packets["update"]
    assert make_client(algorithm=Scaffold()).train(ask_scaffold(1)).packets["update"] == plain
