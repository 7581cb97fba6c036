"""One hostile node of three on a live SuperLink: what it says in another's name, and what nobody can read."""

import textwrap

import pytest

from fedq.config import compose
from fedq.runtime.rehearsal import rehearsal
from tests.e2e.test_deployment import app  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.slow, pytest.mark.hostile]
HOSTILE = """
    import os
    from mine import Net

    def is_node(number):
        return os.environ.get("FEDQ_HOME", "").endswith(f"clients/{number}")

    class Garbage(Net):
        # Node 1 answers with a message whose body nobody can put together.
        def forward(self, x):
            if self.training and is_node(1):
                from flwr.app import RecordDict
                from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body

                RecordDict.deflate = lambda self: add_header_to_object_body(object_body=b"garbage", obj=self)
            return super().forward(x)

    class Impostor(Net):
        # Node 2 declines in the name of client 0.
        def __init__(self):
            super().__init__()
            if is_node(2):
                from fedq.flower import wire

                wire.write_hello = lambda hello: wire.write_refusal(wire.Refusal(0, "budget", "0"))
"""
WORDS = ["data._target_=mine.digits", "clients=3", "rounds=2", "strategy.weighting=equal", "codec=int8"]


@pytest.fixture
def hostile(app):  # noqa: F811
    (app / "hostile.py").write_text(textwrap.dedent(HOSTILE))
    project = app / "pyproject.toml"
    project.write_text(project.read_text().replace('["mine.py"]', '["mine.py", "hostile.py"]'))
    return app


def test_a_reply_that_nobody_can_read_costs_its_node_alone(hostile):
    result = rehearsal(compose(["model._target_=hostile.Garbage", *WORDS]), root="out")
    assert (result.status, result.rounds) == ("finished", 2)
    assert [row.accepted for row in result.history[1:]] == [["0", "2"]] * 2
    assert [row.rejected for row in result.history[1:]] == [[{"client": "1", "reason": "unreadable"}]] * 2


def test_a_refusal_in_another_s_name_ends_no_run(hostile):
    waits = ["runtime.wait=60", "runtime.min_available=2"]
    config = compose(["model._target_=hostile.Impostor", *WORDS, "runtime=deployment", *waits])
    result = rehearsal(config, root="out")
    assert (result.status, result.rounds) == ("finished", 2)
    assert [row.accepted for row in result.history[1:]] == [["0", "1"]] * 2
    assert "node_key" in result.history[0].reasons
