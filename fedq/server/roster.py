"""Which node is which client, learnt before the first round. Knows wire; not what a client trains."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

from fedq import wire
from fedq.server.total import Rejected

# grid.push + pull, or a grid's own stream: messages in, replies out as they come.
Exchange = Callable[[Iterable[Message], float], Iterable[Message]]


@dataclass
class Roster:
    """Identity -> Flower node id. Node ids are random; whatever must be the same twice goes by identity."""

    nodes: dict[str, int] = field(default_factory=dict)
    refused: list[Rejected] = field(default_factory=list)

    def keep(self, expected: Iterable[str]) -> None:
        """Refuse whoever the experiment does not know by name."""
        strangers = set(self.nodes) - set(expected)
        self.refused += [Rejected(name, "unknown_node") for name in sorted(strangers)]
        for name in strangers:
            del self._by_node[self.nodes.pop(name)]

    def identity_of(self, node_id: int) -> str | None:
        return self._by_node.get(node_id)

    def __post_init__(self) -> None:
        self._by_node = {node: name for name, node in self.nodes.items()}


def say_hello(
    exchange: Exchange,
    node_ids: Iterable[int],
    *,
    version: str,
    formats: tuple[int, ...],
    layout: bytes,
    timeout: float,
) -> Roster:
    """Ask every node who it is; refuse one that is silent, or speaks another version, packet format or model."""
    asked = list(node_ids)
    messages = [Message(wire.empty(), dst_node_id=n, message_type=wire.HELLO) for n in asked]
    found: dict[str, int] = {}
    refused: list[Rejected] = []
    waiting = set(asked)
    for reply in exchange(messages, timeout):
        node = reply.metadata.src_node_id
        if node not in waiting:  # one node, one name: a second answer must not bring a second client in
            refused.append(Rejected(str(node), "duplicate" if node in asked else "unknown_node"))
            continue
        waiting.discard(node)
        try:
            if reply.has_error():
                raise wire.MalformedReply("error", "no hello")
            hello = wire.read_hello(reply.content)
        except wire.MalformedReply as error:
            refused.append(Rejected(str(node), error.reason))
            continue
        reason = _mismatch(hello, version, formats, layout)
        if reason is None and hello.identity in found:
            reason = "duplicate"
        if reason is None:
            found[hello.identity] = node
        else:
            refused.append(Rejected(hello.identity, reason))
    refused += [Rejected(str(node), "no_reply") for node in sorted(waiting)]
    return Roster(found, refused)


def _mismatch(hello: wire.Hello, version: str, formats: tuple[int, ...], layout: bytes) -> str | None:
    if hello.version != version:
        return "version"
    if not set(formats) & set(hello.formats):
        return "format"
    return None if hello.layout == layout else "layout"


def grid_exchange(grid: Any) -> Exchange:
    """How this grid is spoken to: by its own `stream` if it has one, else by push and repeated pull.

    Flower's `send_and_receive` collects all replies in a list before the first is looked at.
    """
    if hasattr(grid, "stream"):
        return lambda messages, timeout: grid.stream(messages)

    def exchange(messages: Iterable[Message], timeout: float) -> Iterable[Message]:
        waiting, end = set(grid.push_messages(list(messages))), time.monotonic() + timeout
        while waiting and time.monotonic() < end:
            replies = list(grid.pull_messages(list(waiting)))
            for reply in replies:
                waiting.discard(reply.metadata.reply_to_message_id)
                yield reply
            if not replies:
                time.sleep(0.2)

    return exchange
