"""One node that lies about who it is, or sends what cannot be read, costs itself alone."""

import threading
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error

from fedq.flower import private as flower
from fedq.flower import wire
from fedq.server.node_names import NodeNames, fingerprint, fingerprint_of_node, read_node_names
from fedq.server.roster import LinkLostError, grid_exchange
from fedq.server.round_aggregate import Rejected
from tests.server.test_roster import A, B, SlowGrid, gather, hello, met, requests  # noqa: F401  (a fixture)

pytestmark = pytest.mark.hostile
UNKNOWN = NodeNames()
KEYS = {901: "SHA256:a", 22: "SHA256:b", 66: "SHA256:mallory"}
PINNED = {"names": NodeNames({"a": "SHA256:a", "b": "SHA256:b"}), "key_of": lambda node: KEYS.get(node, "")}


@pytest.fixture(autouse=True)
def _flower():
    flower.enter()


def declines(name, reason="budget"):
    return wire.write_refusal(wire.Refusal(0, reason, name))


@pytest.mark.parametrize("reason", ["budget", "policy", "ledger"])
def test_a_refusal_in_another_s_name_ends_no_run(gather, reason):  # noqa: F811
    """It was believed, and the run ended before the client it named had spoken."""
    found = gather({901: [(0, A)], 66: [(0, declines("b", reason))], 22: [(200, B)]}, names=UNKNOWN)
    assert found.roster.nodes == {"a": 901, "b": 22}
    assert found.roster.refused == [Rejected("b", reason)]  # and the liar is still reported


def test_a_refusal_by_another_key_is_not_said_to_be_the_client_s(gather):  # noqa: F811
    found = gather({901: [(0, A)], 66: [(0, declines("b"))], 22: [(200, B)]}, **PINNED)
    assert found.roster.nodes == {"a": 901, "b": 22}
    assert found.roster.keys == {"a": "SHA256:a", "b": "SHA256:b"}
    assert found.roster.refused == [Rejected("66", "node_key")]


def test_a_name_is_not_given_to_another_key_though_it_comes_first(gather):  # noqa: F811
    found = gather({66: [(0, A)], 901: [(5, A)], 22: [(5, B)]}, **PINNED)
    assert found.roster.nodes == {"a": 901, "b": 22}
    assert found.told[0] == (0, f"66 is refused, node_key: {wire.REJECTIONS['node_key']}")


def test_a_key_of_one_client_does_not_speak_for_a_name_without_a_key(gather):  # noqa: F811
    found = gather({901: [(0, hello(identity="c"))], 22: [(0, B)]}, expected=("b", "c"), wait=1.0, **PINNED)
    assert found.roster is None
    assert "901 was refused, node_key" in found.error


def test_a_client_with_its_own_key_that_declines_ends_the_wait(gather):  # noqa: F811
    found = gather({901: [(0, A)], 22: [(0, declines("b"))]}, **PINNED)
    assert (found.now, found.spent) == (0, True)


def test_only_private_clients_leave_out_their_layout():
    answer = hello(layout=b"")
    assert met([answer]).refused == [Rejected("7", "layout")]


# --- the file of names -------------------------------------------------------------------------------------


def key_pair():
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    ssh = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return ssh, pem


def test_a_key_has_one_fingerprint_in_both_of_its_forms():
    ssh, pem = key_pair()
    assert fingerprint(ssh) == fingerprint(pem) == fingerprint(ssh + b" clinic-a@host\n")
    assert fingerprint(b"") == ""


def test_names_are_read_from_lines_of_pub_files(tmp_path):
    (first, pem), (second, _) = key_pair(), key_pair()
    path = tmp_path / "node-names.toml"
    path.write_text(f'"clinic-a" = "{first.decode()}"\n"clinic-b" = "{second.decode()}"\n')
    names = read_node_names(path)
    assert names.verdict("clinic-a", fingerprint(pem)) == "own"
    assert names.verdict("clinic-b", fingerprint(pem)) == "another's"
    assert names.verdict("clinic-c", "SHA256:new") == "unknown"
    assert read_node_names(tmp_path / "none.toml") == NodeNames()


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.SECP224R1(), None])
def test_a_node_with_an_odd_key_is_nobody_s_and_ends_no_run(curve):
    """A key that OpenSSH cannot spell raised out of the look at the nodes, and the run ended."""
    pem = b"-----BEGIN PUBLIC KEY-----\ngarbage"
    if curve is not None:
        public = ec.generate_private_key(curve).public_key()
        pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert NodeNames({"a": "SHA256:a"}).verdict("a", fingerprint_of_node(pem)) == "another's"


@pytest.mark.parametrize("text", ["a = 3", 'a = "no key"', "a =", 'a = "{0}"\nb = "{0}"'])
def test_a_file_that_is_no_list_of_names_is_refused_before_the_run(tmp_path, text):
    path = tmp_path / "node-names.toml"
    path.write_text(text.replace("{0}", key_pair()[0].decode()))
    with pytest.raises(ValueError, match=r"node-names\.toml: "):
        read_node_names(path)


# --- replies that cannot be read ----------------------------------------------------------------------------


class TornGrid(SlowGrid):
    """Raises over the reply of one node, as Flower does while it puts a message together, and consumes what it took."""

    def __init__(self, torn, error):
        super().__init__()
        self.torn, self.error = torn, error

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        if any(reply.metadata.src_node_id == self.torn for reply in replies):
            raise self.error
        return replies


@pytest.mark.parametrize("error", [ValueError("no object"), KeyError("id"), RecursionError(), AttributeError()])
def test_a_reply_that_cannot_be_decoded_costs_its_node_alone(error):
    """It raised out of the grid, and the run ended as one whose link was lost."""
    replies = list(grid_exchange(TornGrid(2, error))(requests(3), 10))
    assert sorted((r.metadata.src_node_id, r.has_error()) for r in replies) == [(1, False), (2, True), (3, False)]


@pytest.mark.parametrize("error", [ConnectionError("gone"), flower.EngineEndedError("ended")])
def test_a_link_that_is_gone_is_no_fault_of_a_node(error):
    with pytest.raises(LinkLostError, match="the way to the clients is gone"):
        list(grid_exchange(TornGrid(2, error))(requests(3), 10))


class Withholding(SlowGrid):
    """Node 1 announces a reply and keeps a part of it back: pulling it takes as long as Flower tries."""

    def __init__(self):
        super().__init__()
        self.let_go = threading.Event()

    def pull_messages(self, message_ids):
        if list(message_ids) == ["m0"]:
            self.let_go.wait(30)
            return []
        self.pulls = 9
        return super().pull_messages(message_ids)


def test_a_node_that_holds_up_its_reply_holds_up_no_other(monkeypatch):
    """Replies were pulled one after the other, and this one took up to an hour."""
    monkeypatch.setattr(flower, "is_remote", lambda grid: True)
    grid, begun = Withholding(), time.monotonic()
    try:
        replies = list(grid_exchange(grid)(requests(3), 2.0))
    finally:
        grid.let_go.set()
    assert sorted(reply.metadata.src_node_id for reply in replies) == [2, 3]
    assert time.monotonic() - begun < 10


class Impostor(SlowGrid):
    """Node 2 answers in the name of node 1, or to a message that was not its own."""

    def __init__(self, *, as_node=2, to=None):
        super().__init__()
        self.as_node, self.to = as_node, to

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if reply.metadata.src_node_id == 2:
                reply.metadata.__dict__["_src_node_id"] = self.as_node
                if self.to is not None:
                    reply.metadata.__dict__["_reply_to_message_id"] = self.to
        return replies


@pytest.mark.parametrize("lie", [{"as_node": 1}, {"to": "m0"}, {"as_node": 1, "to": "m0"}, {"as_node": 99}])
def test_a_reply_in_another_s_name_is_its_sender_s_alone(lie):
    """What stands inside of a reply is its sender's word; the SuperLink says for which message it came."""
    replies = list(grid_exchange(Impostor(**lie))(requests(3), 10))
    assert sorted((r.metadata.src_node_id, r.has_error()) for r in replies) == [(1, False), (2, True), (3, False)]


def test_an_unreadable_reply_has_a_reason_of_its_own():
    assert met([Error(0, "unreadable")]).refused == [Rejected("1", "unreadable")]
