"""The checks that make a message malformed, and their reasons. Depends on Flower's records; not on fedq's own keys."""

from collections.abc import Mapping, Set
from typing import Any

from flwr.app import RecordDict

# Why a server drops a reply, besides the refusals and `packet_*` (codec.MalformedUpdate.reason).
REJECTIONS = {
    "no_reply": "nothing came before the time-out",
    "error": "Flower reported an error in place of a reply",
    "unknown_node": "the sender was not asked in this round",
    "duplicate": "a second reply of the same client in one round",
    "missing_key": "a record or key is missing",
    "extra_key": "a record or key that is not on the allow-list",
    "wrong_type": "a value of another type",
    "round": "an answer to another round",
    "weight": "a weight that is not a finite number above 0",
    "metric": "a metric that is not finite",
    "version": "a client of another version of fedq",
    "format": "a client that reads none of this server's packet formats",
    "layout": "a client that holds another model",
    "node_key": "a node whose key does not belong to the name that it gives (node-names.toml of the server)",
    "unreadable": "a reply that cannot be read, or is not to what was asked",
    "no_mod": "arrays in place of a packet: add mods=[quantized_mod] to this client's ClientApp",
}


UNREADABLE = "unreadable"


class MalformedReply(ValueError):  # noqa: N818  named for what was received, like codec.MalformedUpdate
    """A reply that must not be used; `reason` is one of `REJECTIONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}")


def reason_of(error: str | None) -> str:
    """The reason for a reply that is Flower's error: `UNREADABLE` if a reply came that could not be read."""
    return UNREADABLE if error == UNREADABLE else "error"


def records_in(content: RecordDict, expected: Mapping[str, type]) -> dict[str, Any]:
    check_keys(content, set(expected))
    for name, kind in expected.items():
        if not isinstance(content[name], kind):
            raise MalformedReply("wrong_type", f"{name} must be a {kind.__name__}")
    return dict(content)


def check_keys(record: Any, expected: set[str], *, optional: Set[str] = frozenset()) -> None:
    found = set(record)
    if found - expected - optional:
        raise MalformedReply("extra_key", "the message holds a key that is not on the allow-list")
    if expected - found:
        raise MalformedReply("missing_key", f"no {', '.join(sorted(expected - found))}")


def typed(record: Any, name: str, kind: type) -> Any:
    value = record[name]
    if type(value) is not kind:
        raise MalformedReply("wrong_type", f"{name} must be {kind.__name__}")
    return value


def number(record: Any, name: str) -> float:
    value = record[name]
    if type(value) not in (int, float):
        raise MalformedReply("wrong_type", f"{name} must be a number")
    return value  # type: ignore[no-any-return]


def packets_in(record: Any) -> dict[str, bytes]:
    return {name: typed(record, name, bytes) for name in record}


def check_same_round(record: Any, round: int) -> None:
    if typed(record, "round", int) != round:
        raise MalformedReply("round", f"not round {round}")
