"""The hello: which node is which client, and who is not let in."""

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedq.flower import private as flower
from fedq.flower import wire
from fedq.server import CyclicSampler, Roster, say_hello
from fedq.server import roster as roster_module
from fedq.server.node_names import NodeNames
from fedq.server.roster import BudgetSpentError, Handshake, TooFewClientsError, grid_exchange, wait_for_clients
from fedq.server.round_aggregate import Rejected

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
    """5,000 digits are no number to Python, and the sampler sorts names by the number in them."""
    roster = met([hello(identity=name), hello()])
    assert roster.refused == [Rejected("1", "wrong_type")]
    assert CyclicSampler(list(roster.nodes), seed=0).cohort(1, 1) == ["7"]


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


# --- clients that come when they come -------------------------------------------------------------------


class Federation:
    """Nodes that appear, stay silent or are fixed at a second of its own clock, which only waiting moves.

    `answers`: node -> [(from this second on, what it answers)]; None is silence. A node is there from its first second.
    """

    def __init__(self, answers):
        self.now, self.answers = 0.0, answers
        self.greeted, self.told = [], []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds

    def node_ids(self):
        return [node for node, says in self.answers.items() if says[0][0] <= self.now]

    def exchange(self, messages, timeout):
        for message in messages:
            node = message.metadata.dst_node_id
            self.greeted.append((self.now, node))
            answer = [what for since, what in self.answers[node] if since <= self.now][-1]
            if answer is not None:
                yield Message(answer, reply_to=message)
            else:
                self.now += timeout  # the others have answered meanwhile

    def tell(self, text):
        self.told.append((self.now, text))


@pytest.fixture
def gather(monkeypatch):
    def gather(answers, *, expected=("a", "b"), wait=300.0, enough=None, **known):
        federation = Federation(answers)
        monkeypatch.setattr(roster_module, "time", federation)
        desk = Handshake(version="1", formats=(1,), layout=LAYOUT, **({"names": NodeNames(trusted=True)} | known))
        count = len(expected) if enough is None else enough
        try:
            federation.roster = wait_for_clients(
                federation.exchange,
                federation.node_ids,
                desk,
                expected=expected,
                wait=wait,
                enough=count,
                tell=federation.tell,
            )
        except TooFewClientsError as error:
            federation.roster, federation.error = None, str(error)
            federation.spent = isinstance(error, BudgetSpentError)
        return federation

    return gather


A, B = hello(identity="a"), hello(identity="b")


def test_where_all_are_there_nobody_waits(gather):
    met_all = gather({901: [(0, A)], 22: [(0, B)]})
    assert met_all.roster.nodes == {"a": 901, "b": 22}
    assert (met_all.now, met_all.told) == (0, [])


def test_a_node_that_comes_late_is_waited_for_and_each_is_greeted_once(gather):
    late = gather({901: [(0, A)], 22: [(30, B)]})
    assert late.roster.nodes == {"a": 901, "b": 22}
    assert 30 <= late.now <= 31
    assert sorted(node for _, node in late.greeted) == [22, 901]


def test_who_is_missing_is_named_once_a_minute(gather):
    waiting = gather({901: [(0, A)], 22: [(150, B)]})
    assert [text for _, text in waiting.told] == [
        "waiting for client b, 240 s more; 1 of 2 have answered",
        "waiting for client b, 180 s more; 1 of 2 have answered",
    ]
    assert [at for at, _ in waiting.told] == [60, 120]


def test_a_node_that_was_refused_and_then_mended_is_let_in(gather):
    fixed = gather({901: [(0, A)], 22: [(0, hello(identity="b", version="0.9")), (20, B)]})
    assert fixed.roster.nodes == {"a": 901, "b": 22}
    assert fixed.roster.refused == []
    assert 60 <= fixed.now <= 61
    at, text = fixed.told[0]
    assert at == 0
    assert text == "b is refused, version: a client of another version of fedq"


def test_a_node_that_was_let_in_is_not_asked_again(gather):
    fixed = gather({901: [(0, A)], 22: [(0, hello(identity="b", layout=b"")), (100, B)]})
    assert [node for _, node in fixed.greeted].count(901) == 1
    assert [at // 60 for at, node in fixed.greeted if node == 22] == [0, 1, 2]  # once a minute


def test_a_node_that_was_silent_is_asked_again(gather):
    woken = gather({901: [(0, A)], 22: [(0, None), (70, B)]})
    assert woken.roster.nodes == {"a": 901, "b": 22}
    assert woken.roster.refused == []
    assert woken.told[0][1] == "22 is refused, no_reply: nothing came before the time-out"


def test_after_the_wait_the_run_is_given_up_and_says_who_is_missing_and_who_was_refused_and_why(gather):
    given_up = gather({1: [(0, A)], 2: [(0, hello(identity="b", layout=b""))], 3: [(0, RecordDict())]}, expected="abc")
    assert given_up.roster is None
    assert given_up.now == 300
    assert given_up.error == (
        "client c did not come within runtime.wait=300 s; 1 of 3 answered; "
        "b was refused, layout; 3 was refused, missing_key"
    )


def declined(name, reason="budget"):
    return wire.write_refusal(wire.Refusal(0, reason, name))


def test_where_all_have_declined_nobody_waits_and_none_is_said_not_to_have_come(gather):
    given_up = gather({1: [(0, declined("a", "ledger"))], 2: [(7, declined("b", "policy"))]}, enough=1)
    assert given_up.now == 7
    assert given_up.error == (
        "too few clients can come, 1 needed; 0 of 2 answered; a was refused, ledger; b was refused, policy"
    )


@pytest.mark.parametrize(("reason", "spent"), [("budget", True), ("policy", False), ("ledger", False)])
def test_one_that_declines_ends_the_wait_where_all_are_needed_and_says_whether_it_is_for_the_budget(
    gather, reason, spent
):
    given_up = gather({1: [(0, declined("a", reason))]})
    assert (given_up.now, given_up.spent) == (0, spent)
    assert "did not come" not in given_up.error


def test_where_those_that_are_left_are_enough_they_are_waited_for(gather):
    begun = gather({1: [(0, declined("a"))], 2: [(40, B)]}, enough=1, wait=90)
    assert begun.roster.nodes == {"b": 2}
    assert begun.told[-1] == (90, "going on without them: 1 of 2 answered; a was refused, budget")


def test_a_stranger_or_a_second_node_that_declines_for_a_client_that_is_there_ends_nothing(gather):
    both = gather({1: [(0, A)], 2: [(0, declined("mallory"))], 3: [(0, declined("a"))], 4: [(20, B)]})
    assert both.roster.nodes == {"a": 1, "b": 4}


def test_of_many_that_are_missing_ten_are_named(gather):
    names = [f"c{i}" for i in range(14)]
    given_up = gather({}, expected=names, wait=5)
    assert given_up.error.startswith("clients c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 4 more did not come")


def test_enough_clients_begin_after_the_wait_and_not_before(gather):
    begun = gather({901: [(0, A)]}, enough=1, wait=90)
    assert begun.roster.nodes == {"a": 901}
    assert begun.now == 90
    assert begun.told[-1][1] == (
        "going on without them: client b did not come within runtime.wait=90 s; 1 of 2 answered"
    )


def test_a_stranger_is_not_counted_among_the_enough(gather):
    given_up = gather({901: [(0, A)], 22: [(0, hello(identity="mallory"))]}, enough=2, wait=5)
    assert given_up.error.startswith("client b did not come within runtime.wait=5 s; 1 of 2 answered")


def test_without_a_wait_every_node_that_is_there_is_greeted_once(gather):
    assert gather({901: [(0, A)], 22: [(0, B)]}, wait=0).roster.nodes == {"a": 901, "b": 22}
    assert gather({901: [(0, A)], 22: [(1, B)]}, wait=0).error.startswith("client b did not come")


def test_a_second_node_of_the_same_name_is_refused_and_the_first_stays(gather):
    two = gather({901: [(0, A)], 902: [(0, A)], 22: [(5, B)]})
    assert two.roster.nodes == {"a": 901, "b": 22}
    assert two.roster.refused == [Rejected("a", "duplicate")]


def test_a_client_that_refuses_to_say_hello_is_told_with_its_code(gather):
    refusing = wire.write_refusal(wire.Refusal(0, "client_error"))
    given_up = gather({901: [(0, A)], 22: [(0, refusing)]}, wait=5)
    assert given_up.told[0][1].startswith("22 is refused, client_error: the client's own code failed")
    assert given_up.error.endswith("22 was refused, client_error")


def test_a_roster_keeps_only_those_whom_the_experiment_knows():
    roster = Roster({"a": 1, "mallory": 2, "eve": 3})
    roster.keep(["a", "b"])
    assert roster.nodes == {"a": 1}
    assert roster.refused == [Rejected("eve", "unknown_node"), Rejected("mallory", "unknown_node")]
    assert (roster.identity_of(1), roster.identity_of(2)) == ("a", None)
