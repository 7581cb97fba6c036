"""The grid of this process is a Flower grid: every node one call, an exception an error reply without its text."""

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedq.flower.grid import InProcessGrid
from fedq.flower.private import serialized

SECRET = "secret.csv, row 41"


@pytest.fixture
def counting_app():
    """Answers with its partition and how often it was asked; partition 2 fails."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2:
            raise ValueError(SECRET)
        asked = context.state.get("asked", ConfigRecord({"times": 0}))
        context.state["asked"] = ConfigRecord({"times": asked["times"] + 1})
        told = {"name": context.node_config["partition-id"], "times": context.state["asked"]["times"]}
        return Message(RecordDict({"told": ConfigRecord(told)}), reply_to=message)

    return app


@pytest.fixture
def grid(counting_app):
    return InProcessGrid(counting_app, 3)


def request(node, kind="train"):
    return Message(RecordDict(), dst_node_id=node, message_type=kind)


def told(reply):
    return dict(reply.content["told"])


def test_it_is_a_flower_grid(grid):
    assert isinstance(grid, Grid)


def test_a_node_s_config_is_that_of_flower_s_simulation(grid):
    configs = [context.node_config for context in grid.contexts.values()]
    assert configs == [{"partition-id": i, "num-partitions": 3} for i in range(3)]


def test_nodes_are_counted_from_one_in_the_order_of_their_partitions(grid):
    assert list(grid.get_node_ids()) == [1, 2, 3]
    assert [told(reply)["name"] for reply in grid.send_and_receive([request(2), request(1)])] == [1, 0]


def test_a_reply_comes_from_the_node_that_was_asked(grid):
    (reply,) = grid.send_and_receive([request(2)])
    assert (reply.metadata.src_node_id, reply.metadata.message_type) == (2, "train")


def test_a_node_keeps_its_own_state(grid):
    asked = [request(1), request(2), request(1), request(1)]
    assert [told(reply)["times"] for reply in grid.send_and_receive(asked)] == [1, 1, 2, 3]


def test_a_message_is_sent_when_the_reply_before_it_was_taken(grid):
    sent = []

    def requests():
        for node in (1, 2):
            sent.append(node)
            yield request(node)

    stream = grid.stream(requests())
    assert sent == []
    next(stream)
    assert sent == [1]
    next(stream)
    assert sent == [1, 2]


def test_an_exception_is_an_error_reply_and_others_are_asked_all_the_same(grid):
    replies = list(grid.send_and_receive([request(3), request(1)]))
    assert [reply.has_error() for reply in replies] == [True, False]
    assert replies[0].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert replies[0].metadata.src_node_id == 3


def test_the_text_of_an_exception_stays_on_this_side(counting_app):
    seen = []
    grid = InProcessGrid(counting_app, 3, on_error=lambda node, text: seen.append((node, text)))
    (reply,) = grid.send_and_receive([request(3)])
    assert SECRET.encode() not in serialized(reply)
    ((node, text),) = seen
    assert node == 3
    assert SECRET in text


def test_an_unknown_task_is_an_error_reply(grid):
    (reply,) = grid.send_and_receive([request(1, "evaluate")])
    assert reply.has_error()


def test_ctrl_c_in_a_client_is_not_swallowed(grid):
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        InProcessGrid(app, 1).send_and_receive([request(1)])


def test_pushed_messages_are_pulled_by_their_ids(grid):
    first, second = grid.push_messages([request(1), request(2)])
    assert [told(reply)["name"] for reply in grid.pull_messages([second])] == [1]
    assert [told(reply)["name"] for reply in grid.pull_messages([first])] == [0]


def test_a_reply_is_pulled_once(grid):
    ids = grid.push_messages([request(1)])
    assert len(grid.pull_messages(ids)) == 1
    assert grid.pull_messages(ids) == []


def test_ids_of_replies_that_wait_are_not_given_again(grid):
    first, second = grid.push_messages([request(1), request(2)])
    grid.pull_messages([first])
    (third,) = grid.push_messages([request(1)])
    assert [told(reply)["name"] for reply in grid.pull_messages([second, third])] == [1, 0]


def test_messages_are_made_as_flower_makes_them(grid):
    message = grid.create_message(RecordDict(), "train", 2, "round 1", ttl=60)
    metadata = message.metadata
    assert (metadata.dst_node_id, metadata.message_type, metadata.group_id, metadata.ttl) == (2, "train", "round 1", 60)


def test_a_local_run_has_no_run_record_until_it_is_given_one(grid):
    with pytest.raises(AttributeError, match="no Flower run record"):
        _ = grid.run
    grid.set_run("a run")
    assert grid.run == "a run"
