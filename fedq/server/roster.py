"""Which node is which client, learnt before the first round. Knows wire; not what a client trains."""

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

from flwr.app import Error, Message

from fedq.flower import private as flower
from fedq.flower import wire
from fedq.server.node_names import NodeNames
from fedq.server.round_aggregate import Rejected

LOG = getLogger("flwr")  # Flower's own
_AT_ONCE = 256  # messages that are asked for at the same moment: nodes that hold up theirs leave room for others
_UNKNOWN = 0  # of Flower's error codes

# grid.push + pull, or a grid's own stream: messages in, replies out as they come.
Exchange = Callable[[Iterable[Message], float], Iterable[Message]]


@dataclass
class Roster:
    """Identity -> Flower node id. Node ids are random; whatever must be the same twice goes by identity."""

    nodes: dict[str, int] = field(default_factory=dict)
    refused: list[Rejected] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)  # identity -> fingerprint of its node's key, if it has one

    def keep(self, expected: Iterable[str]) -> None:
        """Refuse clients that the experiment does not know by name."""
        unknown = set(self.nodes) - set(expected)
        self.refused += [Rejected(name, "unknown_node") for name in sorted(unknown)]
        for name in unknown:
            del self._by_node[self.nodes.pop(name)]
            self.keys.pop(name, None)

    def identity_of(self, node_id: int) -> str | None:
        return self._by_node.get(node_id)

    def __post_init__(self) -> None:
        self._by_node = {node: name for name, node in self.nodes.items()}


class LinkLostError(RuntimeError):
    """The way to the clients is gone; what is done is delivered all the same."""


class TooFewClientsError(RuntimeError):
    """The run cannot begin: fewer clients answered than a round needs, or than were to be waited for."""


class BudgetSpentError(TooFewClientsError):
    """The run cannot begin: too many clients have no privacy budget left for even one round."""


def too_few(text: str, refused: Sequence[Rejected], *, lacking: int) -> TooFewClientsError:
    """The error that says why: lack of budget where those who lack it would have been enough."""
    spent = sorted(r.client for r in refused if r.reason == "budget")
    if len(spent) >= max(1, lacking):
        return BudgetSpentError(f"{text}; the privacy budget of {_some(spent)} does not allow one more round")
    return TooFewClientsError(text)


class Handshake:
    """Where hellos are read: who is let in under which name, and who is not and why.

    `private`: clients may leave out their layout, which they know only once they have opened their data.
    `names`: which node may speak in which name; `key_of`: node -> fingerprint of its public key.
    """

    def __init__(
        self,
        *,
        version: str,
        formats: tuple[int, ...],
        layout: bytes,
        private: bool = False,
        names: NodeNames | None = None,
        key_of: Callable[[int], str] = lambda node: "",
    ) -> None:
        self._version, self._formats = version, formats
        self._layouts = (layout, b"") if private else (layout,)
        self._names, self._key_of = names or NodeNames(), key_of
        self.found: dict[str, int] = {}
        self._refused: list[Rejected] = []
        self._by_node: dict[int, Rejected] = {}
        self._own: set[int] = set()  # nodes that have shown to speak in their own name

    def ask(
        self, exchange: Exchange, nodes: Iterable[int], timeout: float, *, done: Callable[[], bool] = lambda: False
    ) -> list[Rejected]:
        """Greet the nodes and read what they answer, until `done`; returns those that are refused now."""
        asked = list(nodes)
        messages = [Message(wire.empty(), dst_node_id=n, message_type=wire.HELLO) for n in asked]
        waiting = set(asked)
        for reply in exchange(messages, timeout):
            node = reply.metadata.src_node_id
            if node not in waiting:  # one node, one name: a second answer must not bring a second client in
                self._refused.append(Rejected(str(node), "duplicate" if node in asked else "unknown_node"))
                continue
            waiting.discard(node)
            self._by_node.pop(node, None)
            refusal = self._read(reply)
            if refusal is not None:
                self._by_node[node] = refusal
            if done():  # a stray node that is silent must not delay the others
                break
        for node in waiting:
            self._by_node[node] = Rejected(str(node), "no_reply")
        return [self._by_node[node] for node in asked if node in self._by_node]

    def roster(self) -> Roster:
        silent = sorted(r.client for r in self._by_node.values() if r.reason == "no_reply")
        spoken = [r for r in self._by_node.values() if r.reason != "no_reply"]
        keys = {name: key for name, node in self.found.items() if (key := self._key_of(node))}
        silence = [Rejected(node, "no_reply") for node in silent]
        return Roster(dict(self.found), [*self._refused, *spoken, *silence], keys)

    def refused(
        self, expected: Iterable[str], reasons: Collection[str] | None = None, *, shown: bool = False
    ) -> list[Rejected]:
        """Those of the expected clients that were refused (for these reasons) and not let in since, each once.

        `shown`: only those whose node has shown that the name is its own, so that nobody else can decline for them.
        """
        said = [r for node, r in self._by_node.items() if node in self._own or not shown]
        last = {r.client: r for r in said if reasons is None or r.reason in reasons}
        return [last[name] for name in expected if name in last and name not in self.found]

    def _read(self, reply: Message) -> Rejected | None:
        node = reply.metadata.src_node_id
        try:
            if reply.has_error():
                raise wire.MalformedReply(wire.reason_of(reply.error.reason), "no hello")
            hello = wire.read_hello(reply.content)
        except wire.MalformedReply as error:
            return Rejected(str(node), error.reason)
        verdict = self._names.verdict(hello.identity, self._key_of(node)) if hello.identity else "unknown"
        if verdict == "another's":
            return Rejected(str(node), "node_key")
        if verdict == "own":
            self._own.add(node)
        if isinstance(hello, wire.Refusal):
            return Rejected(hello.identity or str(node), hello.reason)
        reason = _mismatch(hello, self._version, self._formats, self._layouts)
        if reason is None and self.found.get(hello.identity, node) != node:
            reason = "duplicate"
        if reason is None:
            self.found[hello.identity] = node
            return None
        return Rejected(hello.identity, reason)


def say_hello(
    exchange: Exchange,
    node_ids: Iterable[int],
    *,
    version: str,
    formats: tuple[int, ...],
    layout: bytes,
    timeout: float,
    private: bool = False,
) -> Roster:
    """Ask every node who it is; refuse one that is silent, or speaks another version, packet format or model."""
    handshake = Handshake(version=version, formats=formats, layout=layout, private=private)
    handshake.ask(exchange, node_ids, timeout)
    return handshake.roster()


def wait_for_clients(
    exchange: Exchange,
    node_ids: Callable[[], Iterable[int]],
    handshake: Handshake,
    *,
    expected: Sequence[str],
    wait: float,
    enough: int,
    tell: Callable[[str], None],
) -> Roster:
    """Greet nodes as they appear, until all `expected` clients have answered or `wait` seconds have passed.

    Who is missing is told once a minute. A node that was refused is greeted again each minute: its operator may have
    fixed it. Raises `TooFewClientsError` where fewer than `enough` came, and at once where so many clients have
    themselves decided against this run that fewer than `enough` can come. "Themselves" is by their node's key: a node
    that declines in a name that is not shown to be its own is only reported, and the client is waited for.
    """
    begun = told = time.monotonic()
    settled: set[int] = set()
    while True:
        asked = [node for node in _through(node_ids) if node not in settled]
        left = wait - (time.monotonic() - begun)
        if asked:
            patience = max(_LEAST, min(_MINUTE, left))
            for refusal in handshake.ask(
                exchange, asked, patience, done=lambda: handshake.found.keys() >= set(expected)
            ):
                tell(f"{refusal.client} is refused, {refusal.reason}: {_meaning(refusal.reason)}")
            settled.update(asked)
        missing = [name for name in expected if name not in handshake.found]
        if not missing:
            return handshake.roster()
        lacking = enough - len(expected) + len(handshake.refused(expected, _DECISIONS, shown=True))
        if lacking > 0:
            text = f"too few clients can come, {enough} needed; {_count(handshake, expected)} answered"
            raise too_few(f"{text}{_refusals(handshake.roster().refused)}", handshake.roster().refused, lacking=lacking)
        left = wait - (time.monotonic() - begun)
        if left <= 0:
            break
        if time.monotonic() - told >= _MINUTE:
            told = time.monotonic()
            settled = set(handshake.found.values())
            tell(f"waiting for {_some(missing)}, {left:.0f} s more; {_count(handshake, expected)} have answered")
        time.sleep(min(1.0, left))
    refused = handshake.refused(expected)
    absent = [name for name in missing if name not in {r.client for r in refused}]
    came = f"{_count(handshake, expected)} answered"
    text = f"{_some(absent)} did not come within runtime.wait={wait:g} s; {came}" if absent else came
    if _present(handshake, expected) < enough:
        everybody = handshake.roster().refused
        lacking = enough - _present(handshake, expected)
        raise too_few(f"{text}{_refusals(everybody)}", everybody, lacking=lacking)
    tell(f"going on without them: {text}{_refusals(refused)}")
    return handshake.roster()


_MINUTE = 60.0  # seconds
_LEAST = 15.0  # seconds that a node has to answer: it may start a process and load data for it


# Decided by the client itself: waiting does not change it, while another version or broken code may be fixed.
_DECISIONS = frozenset({"policy", "budget", "ledger"})


def _refusals(refused: Sequence[Rejected]) -> str:
    return "".join(f"; {r.client} was refused, {r.reason}" for r in refused[:5])


def _meaning(reason: str) -> str:
    return {**wire.REFUSALS, **wire.REJECTIONS}.get(reason, reason)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"client{'s' * (len(names) > 1)} {', '.join(names[:10])}{more}"


def _present(handshake: Handshake, expected: Sequence[str]) -> int:
    """An unknown client is none of the experiment, whatever name it gives."""
    return sum(name in handshake.found for name in expected)


def _count(handshake: Handshake, expected: Sequence[str]) -> str:
    return f"{_present(handshake, expected)} of {len(expected)}"


def _mismatch(hello: wire.Hello, version: str, formats: tuple[int, ...], layouts: Collection[bytes]) -> str | None:
    if hello.version != version:
        return "version"
    if not set(formats) & set(hello.formats):
        return "format"
    return None if hello.layout in layouts else "layout"


def _through(call: Callable[[], Iterable[Any]]) -> list[Any]:
    """What Flower's grid gives; it has retried by itself, so an error means that its SuperLink is gone."""
    try:
        return list(call())
    except Exception as error:
        raise LinkLostError(f"the way to the clients is gone: {type(error).__name__}: {error}") from error


def grid_exchange(grid: Any) -> Exchange:
    """How this grid is spoken to: by its own `stream` if it has one, else by push and repeated pull.

    Flower's `send_and_receive` collects all replies in a list before the first is looked at. Replies are pulled one by
    one, since Flower's grid reads several at once or none: one that cannot be read would take the others with it.
    """
    if hasattr(grid, "stream"):
        return lambda messages, timeout: grid.stream(messages)

    def exchange(messages: Iterable[Message], timeout: float) -> Iterable[Message]:
        asked = list(messages)
        sent = _through(lambda: grid.push_messages(asked))
        # An id is None where the message could not be sent: its client is then one that does not answer.
        waiting = {number: message for number, message in zip(sent, asked, strict=False) if number}
        end = time.monotonic() + timeout
        if flower.is_remote(grid):
            yield from _pulled_side_by_side(grid, waiting, end)
            return
        while waiting and time.monotonic() < end:
            came = 0
            for number, message in list(waiting.items()):
                for reply in _pulled(grid, number, message):
                    came += 1
                    waiting.pop(number, None)
                    yield reply
            if not came:
                time.sleep(0.2)

    return exchange


def _pulled_side_by_side(grid: Any, waiting: Mapping[str, Message], end: float) -> Iterable[Message]:
    """Replies as they come, each message asked for in a thread of its own.

    A node that announces a reply and keeps a part of it back holds up a pull for as long as Flower tries, an hour and
    more: its own alone. Threads that still wait at the end are left behind, and end with the process.
    """
    came: queue.SimpleQueue[tuple[Message | None, Exception | None]] = queue.SimpleQueue()
    places = threading.Semaphore(_AT_ONCE)

    def pull(number: str, message: Message) -> None:
        try:
            while time.monotonic() < end:
                with places:
                    asked = time.monotonic()
                    replies = _pulled(grid, number, message)
                if replies:
                    came.put((replies[0], None))
                    return
                time.sleep(max(0.2, min(2.0, 4 * (time.monotonic() - asked))))  # a SuperLink that is slow is asked less
        except Exception as error:
            came.put((None, error))

    for number, message in waiting.items():
        threading.Thread(target=pull, args=(number, message), daemon=True).start()
    for _ in waiting:
        try:
            reply, error = came.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return
        if error is not None:
            raise error
        if reply is not None:
            yield reply


def _pulled(grid: Any, number: str, message: Message) -> list[Message]:
    """The reply to one message, if it is there: an error in its node's name where it cannot be read or is not to it."""
    node = message.metadata.dst_node_id
    try:
        replies = list(grid.pull_messages([number]))
    except flower.LINK_ERRORS as error:
        raise LinkLostError(f"the way to the clients is gone: {type(error).__name__}: {error}") from error
    except Exception as error:  # what a node sent is decoded in there
        LOG.warning("node %d: a reply that cannot be read: %s", node, type(error).__name__)
        return [_unreadable(message)]
    own = [
        reply for reply in replies if (reply.metadata.src_node_id, reply.metadata.reply_to_message_id) == (node, number)
    ]
    # What stands inside of a reply is its sender's word; that it came for this message is the SuperLink's.
    return own[:1] or [_unreadable(message)] * bool(replies)


def _unreadable(message: Message) -> Message:
    return Message(Error(_UNKNOWN, wire.UNREADABLE), reply_to=message)
