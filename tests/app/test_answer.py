"""The client's outermost layer: whatever goes wrong inside, a code leaves and the text stays."""

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import nn

from fedq import __version__, codec
from fedq.app.answer import client_app
from fedq.client import Client, ClientState
from fedq.data import Examples
from fedq.flower import wire
from fedq.flower.grid import InProcessGrid
from fedq.flower.private import serialized
from fedq.privacy import Declined, LedgerError
from fedq.training import Recipe, Trainer, layout_of, read_vector

SECRET = "/srv/patients/record-41.csv"


@pytest.fixture
def client(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    trainer = Trainer(model, layout_of(model), Recipe(batch_size=2, optimizer="SGD", lr=0.1, rounds=9, steps=1))
    examples = Examples(torch.eye(4, 3).numpy(), torch.tensor([0, 1, 0, 1]).numpy())
    return Client("clinic-a", trainer, codec.Float32(), lambda: examples, ClientState(tmp_path / "state"), seed=0)


def ask(client_of, kind, content=None):
    """What comes back from a client that is found so."""
    grid = InProcessGrid(client_app(client_of), 1)
    (reply,) = grid.stream([Message(content or wire.empty(), dst_node_id=1, message_type=kind)])
    return reply


def request(client, round=5):
    layout = client.trainer.layout
    weights = read_vector(client.trainer.model, layout)
    packet = codec.encode(weights, "float32", layout=layout, kind="weights", round=round)
    return wire.write_request(wire.Request(round, -1, {"model": packet}, 0.25))


def refusal(reply):
    assert not reply.has_error()
    assert set(reply.content) == {"fedq.refusal"}
    return dict(reply.content["fedq.refusal"])


def raising(error):
    def client_of(context):
        raise error

    return client_of


def hello_of(client):
    return wire.HELLO, wire.empty()


def training(client):
    return wire.TRAIN, request(client)


def unreadable(client):
    return wire.TRAIN, RecordDict({"other": ConfigRecord()})


@pytest.mark.parametrize("asked", [hello_of, training, unreadable])
def test_no_clock_of_the_client_s_is_in_a_reply(client, asked):
    """Flower's envelope would say when the client was done, which depends on the batch that was drawn."""
    grid, (kind, content) = InProcessGrid(client_app(lambda context: client), 1), asked(client)
    message = Message(content, dst_node_id=1, message_type=kind)
    message.metadata.created_at -= 3600  # as if it had taken an hour
    (reply,) = grid.stream([message])
    assert (reply.metadata.created_at, reply.metadata.ttl) == (message.metadata.created_at, message.metadata.ttl)
    floats = [value for value in vars(reply.metadata).values() if isinstance(value, float)]
    assert floats == [reply.metadata.created_at]  # and the time to live, which is whole seconds: no other clock


def test_a_client_says_who_it_is_and_what_it_speaks(client):
    hello = wire.read_hello(ask(lambda context: client, wire.HELLO).content)
    assert hello == wire.Hello("clinic-a", __version__, codec.FORMATS, client.trainer.layout.digest)


@pytest.mark.parametrize("kind", [wire.TRAIN, wire.EVALUATE])
def test_an_answer_is_to_the_round_that_was_asked(client, kind):
    reply = ask(lambda context: client, kind, request(client, round=5))
    assert reply.content["fedq.reply"]["round"] == 5


ERRORS = [ValueError(f"cannot read {SECRET}"), SystemExit(SECRET), FileNotFoundError(2, "no such file", SECRET)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_client_that_cannot_be_built_says_a_code_at_hello_and_its_operator_reads_the_text(error, capsys):
    reply = ask(raising(error), wire.HELLO)
    assert refusal(reply) == {"round": 0, "reason": "client_error"}
    assert SECRET.encode() not in serialized(reply)
    assert SECRET in capsys.readouterr().err


@pytest.mark.parametrize("kind", [wire.TRAIN, wire.EVALUATE])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_client_that_cannot_be_built_any_more_refuses_the_round_that_was_asked(client, error, kind, capsys):
    """With another round in it the server would take the refusal for a stray reply, and not know why."""
    reply = ask(raising(error), kind, request(client, round=5))
    assert refusal(reply) == {"round": 5, "reason": "client_error"}
    assert SECRET.encode() not in serialized(reply)
    assert SECRET in capsys.readouterr().err


@pytest.mark.parametrize("kind", [wire.HELLO, wire.TRAIN, wire.EVALUATE])
def test_ctrl_c_ends_the_client(client, kind):
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        ask(raising(KeyboardInterrupt()), kind, request(client))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"fedq.request": ConfigRecord({"round": 5, "accepted": -1, "shell": "rm"})}),
        RecordDict({"config": ConfigRecord({"server-round": 1})}),
    ],
)
def test_a_request_of_another_form_is_refused(client, content):
    assert refusal(ask(lambda context: client, wire.TRAIN, content))["reason"] == "bad_request"


def test_a_log_that_cannot_be_written_does_not_change_the_answer(client, tmp_path):
    (tmp_path / "state").write_text("a file where the client's folder should be")
    content = wire.write_request(wire.Request(5, -1, {"model": b"noise"}))
    assert refusal(ask(lambda context: client, wire.TRAIN, content)) == {"round": 5, "reason": "bad_request"}


def test_a_damaged_state_is_a_code_and_its_mend_is_in_the_log(client, tmp_path):
    client.state = ClientState(tmp_path / "state", durable=True)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.npz").write_bytes(b"noise")
    reply = ask(lambda context: client, wire.TRAIN, request(client))
    assert refusal(reply) == {"round": 5, "reason": "client_error"}
    assert str(tmp_path).encode() not in serialized(reply)
    assert "state.npz: not a client's state" in (tmp_path / "state" / "log.txt").read_text()


def test_a_client_whose_owner_declines_says_so_by_code_and_name_when_it_is_greeted():
    def declined(context):
        error = Declined("policy", "epsilon 8 of at most 3, in /home/alice/policy.toml")
        error.identity = "clinic-a"
        raise error

    said = ask(declined, wire.HELLO).content
    assert wire.read_hello(said) == wire.Refusal(0, "policy", "clinic-a")
    assert "alice" not in str(said)


# --- what the owner reads of refusals --------------------------------------------------------------------


class Ask:
    """A client whose budget or ledger turns every message away."""

    def __init__(self, client, error):
        self.client, self.error = client, error
        for name in ("check_account", "train", "evaluate"):
            setattr(client, name, self.turn_away)

    def turn_away(self, *request):
        raise self.error

    def __call__(self, kind):
        return refusal(ask(lambda context: self.client, kind, request(self.client)))["reason"]


@pytest.mark.parametrize(
    ("error", "reason"), [(Declined("budget", "9.72 of 8"), "budget"), (LedgerError(f"{SECRET} is torn"), "ledger")]
)
@pytest.mark.parametrize(
    ("kind", "when"),
    [(wire.HELLO, "hello: "), (wire.TRAIN, "train, round 5: "), (wire.EVALUATE, "evaluate, round 5: ")],
)
def test_what_a_budget_or_a_ledger_turns_away_is_noted_once_for_the_owner(client, tmp_path, error, reason, kind, when):
    client.state.owner = (tmp_path / "owner", "demo")
    assert Ask(client, error)(kind) == reason
    (line,) = (tmp_path / "owner" / "declined.log").read_text().splitlines()
    assert line.split(" ", 1)[1] == f"'demo' {when}{reason}: {str(error).removeprefix('budget: ')}"
    assert not (tmp_path / "state" / "declined.log").exists()


def test_a_refusal_on_the_terminal_names_its_client(client, capsys):
    """In a local run all of them speak on one terminal."""
    Ask(client, Declined("budget", "9.72 of 8"))(wire.HELLO)
    assert capsys.readouterr().err == "client clinic-a refused to take part: budget: 9.72 of 8\n"


def test_in_simulation_it_is_noted_beside_the_client_s_log(client, tmp_path):
    Ask(client, Declined("budget"))(wire.HELLO)
    assert "budget: the spend would take" in (tmp_path / "state" / "declined.log").read_text()


def test_a_note_that_cannot_be_written_does_not_change_the_answer(client, tmp_path):
    (tmp_path / "owner").write_text("a file where a folder should be")
    client.state.owner = (tmp_path / "owner", "demo")
    assert Ask(client, Declined("budget"))(wire.TRAIN) == "budget"
    assert Ask(client, Declined("budget"))(wire.HELLO) == "budget"
