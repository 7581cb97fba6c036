"""The only owner of record keys: requests and replies <-> Flower's `RecordDict`. Knows no arrays, models or policy.

A message carries named packets (`model` down, `update` up) beside a few public numbers. Nothing from the wire
is trusted: `read_*` checks every key, type and range, and raises `MalformedReply` with a reason code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

HELLO = "query.hello"
TRAIN = "train"
EVALUATE = "evaluate"

_HELLO, _REQUEST, _REPLY = "fedq.hello", "fedq.request", "fedq.reply"
_PACKETS, _METRICS, _REFUSAL = "fedq.packets", "fedq.metrics", "fedq.refusal"

# What a client may say in place of an update. A code, never a text: texts hold paths and data.
REFUSALS = {
    "budget": "the next round would exceed the client's privacy budget",
    "declined": "the client's policy or data does not allow it",
    "ledger": "the client's ledger cannot be read, trusted or written",
    "bad_request": "the client could not decode what the server sent",
    "client_error": "the client's own code failed; its operator finds the text in the client's log",
}
# Why a server drops a reply, beside the refusals and `packet_*` (codec.MalformedUpdate.reason).
REJECTIONS = {
    "no_reply": "nothing came before the time-out",
    "error": "Flower reported an error in place of a reply",
    "unknown_node": "the sender was not asked in this round",
    "duplicate": "a second reply of the same client in one round",
    "missing_key": "a record or key is missing",
    "extra_key": "a record or key that is not on the allow-list",
    "wrong_type": "a value of another type",
    "round": "an answer to another round",
    "weight": "a weight that is not a number in (0, strategy.max_weight]",
    "metric": "a metric that is not finite",
    "version": "a client of another version of fedq",
    "format": "a client that reads none of this server's packet formats",
    "layout": "a client that holds another model",
}
LONGEST_IDENTITY = 64


# All that may leave a client under DP: noise, public configuration and codes.
PUBLIC_FIELDS = frozenset(
    {
        *(f"{_HELLO}.{key}" for key in ("identity", "version", "formats", "layout")),
        f"{_REPLY}.round",
        f"{_PACKETS}.update",
        f"{_REFUSAL}.round",
        f"{_REFUSAL}.reason",
    }
)


class MalformedReply(ValueError):  # noqa: N818  what arrived, as in codec.MalformedUpdate
    """A reply that must not be used; `reason` is one of `REJECTIONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True)
class Hello:
    """Who a client is and what it speaks, stated before the first round."""

    identity: str
    version: str  # of fedq
    formats: tuple[int, ...]  # packet format versions
    layout: bytes  # Layout.digest


@dataclass(frozen=True)
class Request:
    """What the server asks of one client in one round."""

    round: int
    accepted: int  # last round whose update of this client was accepted; -1: none
    packets: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """A client's answer. Under DP `num_examples` and `loss` stay with the client (None)."""

    round: int
    packets: Mapping[str, bytes] = field(default_factory=dict)
    num_examples: int | None = None
    loss: float | None = None
    metric: float | None = None


@dataclass(frozen=True)
class Refusal:
    """No update, and the code that says why."""

    round: int
    reason: str


def empty() -> RecordDict:
    """The content of a hello request: nothing."""
    return RecordDict()


def write_hello(hello: Hello) -> RecordDict:
    values = {"identity": hello.identity, "version": hello.version}
    return RecordDict({_HELLO: ConfigRecord({**values, "formats": list(hello.formats), "layout": hello.layout})})


def read_hello(content: RecordDict) -> Hello:
    record = _records(content, {_HELLO: ConfigRecord})[_HELLO]
    _keys(record, {"identity", "version", "formats", "layout"})
    formats = record["formats"]
    if not isinstance(formats, list) or not all(type(f) is int for f in formats):
        raise MalformedReply("wrong_type", "formats must be integers")
    identity = _typed(record, "identity", str)
    # Names are sorted, logged and shown: 5,000 digits are no number to Python, and an escape moves a cursor.
    if not 0 < len(identity) <= LONGEST_IDENTITY or not identity.isprintable():
        raise MalformedReply("wrong_type", f"identity must be 1 to {LONGEST_IDENTITY} printable characters")
    return Hello(
        identity,
        _typed(record, "version", str),
        tuple(formats),
        _typed(record, "layout", bytes),
    )


def write_request(request: Request) -> RecordDict:
    numbers = ConfigRecord({"round": request.round, "accepted": request.accepted})
    return RecordDict({_REQUEST: numbers, _PACKETS: ConfigRecord(dict(request.packets))})


def read_request(content: RecordDict) -> Request:
    records = _records(content, {_REQUEST: ConfigRecord, _PACKETS: ConfigRecord})
    _keys(records[_REQUEST], {"round", "accepted"})
    round = _typed(records[_REQUEST], "round", int)
    if not 0 <= round < 2**32:  # what a packet's header can hold
        raise MalformedReply("round", f"round {round} is out of range")
    return Request(
        round,
        _typed(records[_REQUEST], "accepted", int),
        _packets(records[_PACKETS]),
    )


def write_reply(reply: Reply) -> RecordDict:
    records: dict[str, Any] = {_REPLY: ConfigRecord({"round": reply.round})}
    if reply.packets:
        records[_PACKETS] = ConfigRecord(dict(reply.packets))
    metrics = {"num_examples": reply.num_examples, "loss": reply.loss, "metric": reply.metric}
    known: dict[str, Any] = {k: v for k, v in metrics.items() if v is not None}
    if known:
        records[_METRICS] = MetricRecord(known)
    return RecordDict(records)


def write_refusal(refusal: Refusal) -> RecordDict:
    return RecordDict({_REFUSAL: ConfigRecord({"round": refusal.round, "reason": refusal.reason})})


def read_reply(
    content: RecordDict, *, round: int, packets: frozenset[str], metrics: frozenset[str], max_weight: float
) -> Reply | Refusal:
    """The reply, if it holds exactly the named packets and metrics and answers this round.

    Under DP `metrics` is empty: a reply that carries any is malformed, so that a client which leaks is
    seen at once, not silently obeyed.
    """
    if set(content) == {_REFUSAL}:
        record = _records(content, {_REFUSAL: ConfigRecord})[_REFUSAL]
        _keys(record, {"round", "reason"})
        _same_round(record, round)
        reason = _typed(record, "reason", str)
        if reason not in REFUSALS:
            raise MalformedReply("wrong_type", "unknown refusal code")
        return Refusal(round, reason)
    expected: dict[str, type] = {_REPLY: ConfigRecord}
    if packets:
        expected[_PACKETS] = ConfigRecord
    if metrics:
        expected[_METRICS] = MetricRecord
    records = _records(content, expected)
    _keys(records[_REPLY], {"round"})
    _same_round(records[_REPLY], round)
    carried: dict[str, bytes] = {}
    if packets:
        _keys(records[_PACKETS], set(packets))
        carried = _packets(records[_PACKETS])
    values: dict[str, float] = {}
    if metrics:
        _keys(records[_METRICS], set(metrics))
        values = {name: _number(records[_METRICS], name) for name in metrics}
    num_examples = values.get("num_examples")
    if num_examples is not None and not 0 < num_examples <= max_weight:
        raise MalformedReply("weight", "num_examples is out of range")
    for name in metrics - {"num_examples"}:
        if not math.isfinite(values[name]):
            raise MalformedReply("metric", f"{name} is not finite")
    return Reply(round, carried, num_examples, values.get("loss"), values.get("metric"))  # type: ignore[arg-type]


def packets_of(content: RecordDict) -> dict[str, bytes]:
    """Name -> packet of any message of ours; empty when it carries none."""
    record = content.get(_PACKETS)
    return {k: v for k, v in record.items() if isinstance(v, bytes)} if isinstance(record, ConfigRecord) else {}


def fields_of(content: RecordDict) -> set[str]:
    """`record.key` of everything that a message holds."""
    return {f"{name}.{key}" for name, record in content.items() for key in record}


def with_packets(content: RecordDict, packets: Mapping[str, bytes]) -> RecordDict:
    """The same message with other packets, to ask what it would have cost. What else it holds stays, hostile or not."""
    record = content.get(_PACKETS)
    others = dict(record) if isinstance(record, ConfigRecord) else {}
    return RecordDict({**content, _PACKETS: ConfigRecord({**others, **packets})})


def _records(content: RecordDict, expected: Mapping[str, type]) -> dict[str, Any]:
    _keys(content, set(expected))
    for name, kind in expected.items():
        if not isinstance(content[name], kind):
            raise MalformedReply("wrong_type", f"{name} must be a {kind.__name__}")
    return dict(content)


def _keys(record: Any, expected: set[str]) -> None:
    found = set(record)
    if found - expected:
        raise MalformedReply("extra_key", "the message holds a key that is not on the allow-list")
    if expected - found:
        raise MalformedReply("missing_key", f"no {', '.join(sorted(expected - found))}")


def _typed(record: Any, name: str, kind: type) -> Any:
    value = record[name]
    if type(value) is not kind:
        raise MalformedReply("wrong_type", f"{name} must be {kind.__name__}")
    return value


def _number(record: Any, name: str) -> float:
    value = record[name]
    if type(value) not in (int, float):
        raise MalformedReply("wrong_type", f"{name} must be a number")
    return value  # type: ignore[no-any-return]


def _packets(record: Any) -> dict[str, bytes]:
    return {name: _typed(record, name, bytes) for name in record}


def _same_round(record: Any, round: int) -> None:
    if _typed(record, "round", int) != round:
        raise MalformedReply("round", f"not round {round}")
