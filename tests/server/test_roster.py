"""The hello: which node is which client, and who is not let in."""

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedq import flower, wire
from fedq.server import Dealer, Roster, say_hello
from fedq.server.roster import grid_exchange
from fedq.server.total import Rejected

LAYOUT = bytes(range(16))
GOOD = wire.Hello("7", "1", (1,), LAYOUT)


@pytest.fixture(autouse=True)
def _flower():
    flower.enter()


def hello(**changes):
    return wire.write_hello(wire.Hello(**{**GOOD.__dict__, **changes}))


def met(answers, *, nodes=None, then=()):
    """The roster after node 1, 2, ... answered so; None: silence. `then`: further answers (node, content)."""

    def exchange(messages, timeout):
        by_node = {message.metadata.dst_node_id: message for message in messages}
        given = [*zip(by_node, answers, strict=True), *then]
        for node, answer in given:
            asked = by_node.get(node) or Message(RecordDict(), dst_node_id=node, message_type=wire.HELLO)
            if answer is not None:
                yield Message(answer, reply_to=asked)

    nodes = nodes or range(1, len(answers) + 1)
    return say_hello(exchange, nodes, version="1", formats=(1, 2), layout=LAYOUT, timeout=1)


def test_a_client_is_known_by_the_name_that_it_gives():
    roster = met([hello(identity="7"), hello(identity="hospital-3")], nodes=[901, 22])
    assert roster.nodes == {"7": 901, "hospital-3": 22}
    assert (roster.identity_of(22), roster.identity_of(23)) == ("hospital-3", None)
    assert roster.refused == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "0.9"}, "version"),
        ({"formats": (3, 4)}, "format"),
        ({"formats": ()}, "format"),
        ({"layout": bytes(16)}, "layout"),
        ({"layout": b""}, "layout"),
    ],
)
def test_a_client_that_speaks_otherwise_is_refused_by_name(changes, reason):
    roster = met([hello(**changes), hello(identity="8")])
    assert roster.nodes == {"8": 2}
    assert roster.refused == [Rejected("7", reason)]


def test_one_common_packet_format_is_enough():
    assert met([hello(formats=(2, 9))]).nodes == {"7": 1}


def test_a_name_is_given_once():
    roster = met([hello(), hello()])
    assert roster.nodes == {"7": 1}
    assert roster.refused == [Rejected("7", "duplicate")]


def test_a_node_is_one_client():
    """Else one node could stand for half the federation."""
    roster = met([hello()], then=[(1, hello(identity="8"))])
    assert roster.nodes == {"7": 1}
    assert roster.refused == [Rejected("1", "duplicate")]


def test_a_node_that_was_not_asked_is_not_let_in():
    roster = met([hello()], then=[(66, hello(identity="8"))])
    assert roster.nodes == {"7": 1}
    assert roster.refused == [Rejected("66", "unknown_node")]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RecordDict(), "missing_key"),
        (RecordDict({"fedq.hello": ConfigRecord({"identity": "7"})}), "missing_key"),
        (RecordDict({"hello": ConfigRecord({"identity": "7"})}), "extra_key"),
        (Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "no such app"), "error"),
    ],
)
def test_whoever_gives_no_hello_is_refused_by_its_node(answer, reason):
    roster = met([answer, hello()])
    assert roster.nodes == {"7": 2}
    assert roster.refused == [Rejected("1", reason)]


def test_whoever_is_silent_is_named():
    roster = met([None, hello(), None])
    assert roster.nodes == {"7": 2}
    assert roster.refused == [Rejected("1", "no_reply"), Rejected("3", "no_reply")]


@pytest.mark.parametrize("name", ["9" * 5000, "", "\x1b[2J", "a\nb", "x" * 65])
def test_a_name_that_would_break_sorting_or_a_terminal_is_refused(name):
    """5,000 digits are no number to Python, and the dealer sorts names by the number in them."""
    roster = met([hello(identity=name), hello()])
    assert roster.refused == [Rejected("1", "wrong_type")]
    assert Dealer(list(roster.nodes), seed=0).cohort(1, 1) == ["7"]


def test_every_refusal_has_a_meaning_written_down():
    assert {"version", "format", "layout", "duplicate", "unknown_node", "no_reply", "error"} <= set(wire.REJECTIONS)


# --- a grid without a stream of its own: Flower's push and pull ---------------------------------------


class SlowGrid:
    """Flower's two calls. The reply of message i is there at the i-th pull; some never come."""

    def __init__(self, never=()):
        self.never, self.pulls, self.pushed = set(never), 0, []

    def push_messages(self, messages):
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"m{number}"
            self.pushed.append(message)
        return [message.metadata.message_id for message in self.pushed]

    def pull_messages(self, message_ids):
        self.pulls += 1
        ready = [m for n, m in enumerate(self.pushed) if n < self.pulls and n not in self.never]
        return [Message(RecordDict(), reply_to=m) for m in ready if m.metadata.message_id in set(message_ids)]


def requests(count):
    return [Message(RecordDict(), dst_node_id=n, message_type=wire.TRAIN) for n in range(1, count + 1)]


def test_replies_are_pulled_one_by_one_as_they_come():
    grid = SlowGrid()
    replies = iter(grid_exchange(grid)(requests(3), 10))
    for pulls in (1, 2, 3):
        assert next(replies).metadata.src_node_id == pulls
        assert grid.pulls == pulls
    assert list(replies) == []


def test_waiting_ends_with_the_time_out():
    replies = list(grid_exchange(SlowGrid(never=[1]))(requests(2), 0.3))
    assert [reply.metadata.src_node_id for reply in replies] == [1]


def test_a_roster_knows_nobody_by_default():
    assert Roster().identity_of(1) is None
