"""The messages of fedq's own clients and server: requests and replies <-> Flower's `RecordDict`.

A message carries named packets and a few public numbers. Packets to a client: `model`, with or without a `mask`, or
`delta.0`, `delta.1`, ...; packets to the server: `update`. Does not know arrays or models.
Nothing received is trusted: `read_*` checks every key, type and range, and raises `MalformedReply` with a reason.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedq.core.packet_names import UPDATE
from fedq.flower.wire.checks import MalformedReply, check_keys, check_same_round, number, packets_in, records_in, typed

HELLO = "query.hello"
TRAIN = "train"
EVALUATE = "evaluate"

MODEL, MASK, _DELTA = "model", "mask", "delta."

_HELLO, _REQUEST, REPLY = "fedq.hello", "fedq.request", "fedq.reply"
PACKETS, _METRICS, _COUNTS, _REFUSAL = "fedq.packets", "fedq.metrics", "fedq.counts", "fedq.refusal"

# What a client may send in place of an update: a code, never a text, because texts may contain data and paths.
REFUSALS = {
    "budget": "the next round would exceed the client's privacy budget",
    "declined": "the client's own code failed, under DP, where why stays with its operator",
    "policy": "the client's owner accepts no run as weak as this, or of this code; its log says what is too weak",
    "ledger": "the client's ledger cannot be read, trusted or written",
    "bad_request": "the client could not decode what the server sent",
    "client_error": "the client's own code failed; its operator finds the text in the client's log",
}
LONGEST_IDENTITY = 64
LARGEST_COUNT = 2**40


# Everything that may leave a client under DP: noise, public configuration and codes.
PUBLIC_FIELDS = frozenset(
    {
        *(f"{_HELLO}.{key}" for key in ("identity", "version", "formats", "layout")),
        f"{REPLY}.round",
        f"{PACKETS}.{UPDATE}",
        *(f"{_COUNTS}.{key}" for key in ("right", "wrong")),  # both noised, with a spend in the ledger
        f"{_REFUSAL}.round",
        f"{_REFUSAL}.reason",
        f"{_REFUSAL}.identity",
    }
)


def public_fields(packets: Iterable[str]) -> frozenset[str]:
    """`PUBLIC` with an algorithm's own packets: these are computed from noised weights and public values."""
    return PUBLIC_FIELDS | {f"{PACKETS}.{name}" for name in packets}


@dataclass(frozen=True)
class Hello:
    """A client's identity and the formats that it supports, sent before the first round."""

    identity: str
    version: str  # version of fedq
    formats: tuple[int, ...]  # packet format versions
    layout: bytes  # Layout.digest


@dataclass(frozen=True)
class Request:
    """The server's request to one client in one round."""

    round: int
    accepted: int  # last round in which this client's update was accepted; -1: none
    packets: Mapping[str, bytes] = field(default_factory=dict)
    holdout: float = 0.0  # share of its examples that the client holds out to evaluate on; 0 if the server evaluates


@dataclass(frozen=True)
class Reply:
    """A client's answer. Under DP `num_examples` and `loss` stay with the client (None)."""

    round: int
    packets: Mapping[str, bytes] = field(default_factory=dict)
    num_examples: int | None = None
    loss: float | None = None
    metric: float | None = None
    counts: tuple[int, int] | None = None  # noised numbers of right and wrong answers; they may be negative


@dataclass(frozen=True)
class Refusal:
    """A code in place of an update. In reply to a hello, also the client's identity, if it is known."""

    round: int
    reason: str
    identity: str = ""


def empty() -> RecordDict:
    """The content of a hello request: nothing."""
    return RecordDict()


def write_hello(hello: Hello) -> RecordDict:
    values = {"identity": hello.identity, "version": hello.version}
    return RecordDict({_HELLO: ConfigRecord({**values, "formats": list(hello.formats), "layout": hello.layout})})


def read_hello(content: RecordDict) -> Hello | Refusal:
    if set(content) == {_REFUSAL}:
        return _refusal(content, 0)
    record = records_in(content, {_HELLO: ConfigRecord})[_HELLO]
    check_keys(record, {"identity", "version", "formats", "layout"})
    formats = record["formats"]
    if not isinstance(formats, list) or not all(type(f) is int for f in formats):
        raise MalformedReply("wrong_type", "formats must be integers")
    return Hello(
        _identity(record),
        typed(record, "version", str),
        tuple(formats),
        typed(record, "layout", bytes),
    )


def write_request(request: Request) -> RecordDict:
    values: dict[str, Any] = {"round": request.round, "accepted": request.accepted}
    if request.holdout:
        values["holdout"] = request.holdout
    return RecordDict({_REQUEST: ConfigRecord(values), PACKETS: ConfigRecord(dict(request.packets))})


def read_request(content: RecordDict) -> Request:
    records = records_in(content, {_REQUEST: ConfigRecord, PACKETS: ConfigRecord})
    numbers = records[_REQUEST]
    check_keys(numbers, {"round", "accepted"}, optional={"holdout"})
    round = typed(numbers, "round", int)
    if not 0 <= round < 2**32:  # what a packet's header can hold
        raise MalformedReply("round", f"round {round} is out of range")
    holdout = typed(numbers, "holdout", float) if "holdout" in numbers else 0.0
    if not 0 <= holdout < 1:
        raise MalformedReply("wrong_type", "holdout must be in [0, 1)")
    return Request(round, typed(numbers, "accepted", int), packets_in(records[PACKETS]), holdout)


def write_reply(reply: Reply) -> RecordDict:
    records: dict[str, Any] = {REPLY: ConfigRecord({"round": reply.round})}
    if reply.packets:
        records[PACKETS] = ConfigRecord(dict(reply.packets))
    metrics = {"num_examples": reply.num_examples, "loss": reply.loss, "metric": reply.metric}
    known: dict[str, Any] = {k: v for k, v in metrics.items() if v is not None}
    if known:
        records[_METRICS] = MetricRecord(known)
    if reply.counts is not None:
        records[_COUNTS] = ConfigRecord(dict(zip(("right", "wrong"), reply.counts, strict=True)))
    return RecordDict(records)


def write_refusal(refusal: Refusal) -> RecordDict:
    values: dict[str, Any] = {"round": refusal.round, "reason": refusal.reason}
    if refusal.identity:
        values["identity"] = refusal.identity
    return RecordDict({_REFUSAL: ConfigRecord(values)})


def read_reply(
    content: RecordDict,
    *,
    round: int,
    packets: frozenset[str],
    metrics: frozenset[str],
    counts: bool = False,
) -> Reply | Refusal:
    """The reply, if it holds exactly these packets and metrics (and noised counts) and answers this round.

    Under DP `metrics` is empty: a reply with a metric is malformed, so that a client that leaks is
    detected at once.
    """
    if set(content) == {_REFUSAL}:
        return _refusal(content, round)
    expected: dict[str, type] = {REPLY: ConfigRecord}
    if packets:
        expected[PACKETS] = ConfigRecord
    if metrics:
        expected[_METRICS] = MetricRecord
    if counts:
        expected[_COUNTS] = ConfigRecord
    records = records_in(content, expected)
    check_keys(records[REPLY], {"round"})
    check_same_round(records[REPLY], round)
    carried: dict[str, bytes] = {}
    if packets:
        check_keys(records[PACKETS], set(packets))
        carried = packets_in(records[PACKETS])
    values: dict[str, float] = {}
    if metrics:
        check_keys(records[_METRICS], set(metrics))
        values = {name: number(records[_METRICS], name) for name in metrics}
    num_examples = values.get("num_examples")
    if num_examples is not None and not 0 < num_examples < math.inf:
        raise MalformedReply("weight", "num_examples must be a finite number above 0")
    for name in metrics - {"num_examples"}:
        if not math.isfinite(values[name]):
            raise MalformedReply("metric", f"{name} is not finite")
    counted = _counts(records[_COUNTS]) if counts else None
    return Reply(round, carried, num_examples, values.get("loss"), values.get("metric"), counted)  # type: ignore[arg-type]


def _counts(record: ConfigRecord) -> tuple[int, int]:
    check_keys(record, {"right", "wrong"})
    right, wrong = typed(record, "right", int), typed(record, "wrong", int)
    if max(abs(right), abs(wrong)) > LARGEST_COUNT:
        raise MalformedReply("weight", f"a count is beyond {LARGEST_COUNT}")
    return right, wrong


def name_deltas(deltas: Sequence[bytes]) -> dict[str, bytes]:
    """Names for packets of deltas, oldest first, as in a request."""
    return {f"{_DELTA}{number}": packet for number, packet in enumerate(deltas)}


def model_of(packets: Mapping[str, bytes]) -> bytes | list[bytes]:
    """The model in a request: one packet of weights, or packets of deltas to apply in order."""
    if set(packets) - {MASK} == {MODEL}:
        return packets[MODEL]
    deltas = name_deltas(list(packets.values()))
    if not deltas or set(deltas) != set(packets):
        raise MalformedReply("missing_key", f"a request brings {MODEL}, or {_DELTA}0, {_DELTA}1, ... without a gap")
    return [packets[name] for name in deltas]


def mask_of(packets: Mapping[str, bytes]) -> bytes:
    """The packet of the pruning mask; b"" if all values are sent."""
    return packets.get(MASK, b"")


def packets_of(content: RecordDict) -> dict[str, bytes]:
    """Name -> packet of any fedq message; empty if it carries none."""
    record = content.get(PACKETS)
    return {k: v for k, v in record.items() if isinstance(v, bytes)} if isinstance(record, ConfigRecord) else {}


def fields_of(content: RecordDict) -> set[str]:
    """`record.key` of everything in a message."""
    return {f"{name}.{key}" for name, record in content.items() for key in record}


def with_packets(content: RecordDict, packets: Mapping[str, bytes]) -> RecordDict:
    """The same message with other packets, to compute its size. Everything else stays, malformed or not.

    Only the mask is removed unless `packets` has one: packets of all values have no mask.
    """
    record = content.get(PACKETS)
    others = {k: v for k, v in record.items() if k != MASK} if isinstance(record, ConfigRecord) else {}
    return RecordDict({**content, PACKETS: ConfigRecord({**others, **packets})})


def _refusal(content: RecordDict, round: int) -> Refusal:
    record = records_in(content, {_REFUSAL: ConfigRecord})[_REFUSAL]
    check_keys(record, {"round", "reason"}, optional={"identity"})
    check_same_round(record, round)
    reason = typed(record, "reason", str)
    if reason not in REFUSALS:
        raise MalformedReply("wrong_type", "unknown refusal code")
    return Refusal(round, reason, _identity(record) if "identity" in record else "")


def _identity(record: ConfigRecord) -> str:
    identity: str = typed(record, "identity", str)
    # Names are sorted, logged and shown: Python refuses 5,000 digits as a number, and an escape can move the cursor.
    if not 0 < len(identity) <= LONGEST_IDENTITY or not identity.isprintable():
        raise MalformedReply("wrong_type", f"identity must be 1 to {LONGEST_IDENTITY} printable characters")
    return identity
