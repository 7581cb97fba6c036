"""A packet inside the messages of an app that is not fedq's. Knows Flower's records; no arrays, models or policy.

What stands under a `fedq.` key is ours and is checked as any message of ours; all else is the user's and passes as
it is. The user's arrays travel as packets, so their record holds what is sent as it is, and a sign for a client
that lacks the mod: Flower shows the serialization type of an array that it cannot read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedq.flower.wire.checks import MalformedReply, check_keys, check_same_round, number, packets_in, records_in, typed
from fedq.flower.wire.messages import PACKETS, REPLY, Reply

_OURS, _GUEST, _RESIDUAL, _SIGN = "fedq.", "fedq.guest", "fedq.residual", "fedq.packet"
_HINT = "fedq packet; add mods=[quantized_mod] to this ClientApp"


@dataclass(frozen=True)
class ForeignRequest:
    """What the mod needs to know beside the user's own records."""

    round: int
    accepted: int | None  # last round whose update of this node counted, -1: none; None: no error feedback
    seed: int  # of stochastic rounding
    layout: bytes  # Layout.to_bytes
    arrays: str  # the user's key of the arrays
    codec: str  # of the update, by name
    options: bytes  # of that codec, as in a packet's header
    packets: Mapping[str, bytes] = field(default_factory=dict)
    whole: Mapping[str, Array] = field(default_factory=dict)  # arrays that are sent as they are


@dataclass(frozen=True)
class Residual:
    """Error feedback as it lies in a node's state: little-endian float32, b"" for none."""

    round: int
    layout: bytes  # Layout.digest
    before: bytes
    after: bytes


def write_foreign_request(request: ForeignRequest, user: RecordDict) -> RecordDict:
    """The user's records with our request in place of their arrays."""
    values: dict[str, Any] = {
        "round": request.round,
        "seed": request.seed,
        "layout": request.layout,
        "arrays": request.arrays,
        "codec": request.codec,
        "options": request.options,
    }
    if request.accepted is not None:
        values["accepted"] = request.accepted
    sign = Array("uint8", (1,), _HINT, b"\0")
    return RecordDict(
        {
            **user,
            request.arrays: ArrayRecord({_SIGN: sign, **request.whole}),
            _GUEST: ConfigRecord(values),
            PACKETS: ConfigRecord(dict(request.packets)),
        }
    )


def is_guest_request(content: RecordDict) -> bool:
    """False for a message of another strategy."""
    return _GUEST in content


def read_foreign_request(content: RecordDict) -> ForeignRequest:
    records = records_in(_ours(content), {_GUEST: ConfigRecord, PACKETS: ConfigRecord})
    record = records[_GUEST]
    check_keys(record, {"round", "seed", "layout", "arrays", "codec", "options"}, optional={"accepted"})
    round, arrays = typed(record, "round", int), typed(record, "arrays", str)
    if not 0 <= round < 2**32:  # what a packet's header can hold
        raise MalformedReply("round", f"round {round} is out of range")
    whole = content.get(arrays)
    if not isinstance(whole, ArrayRecord) or _SIGN not in whole:
        raise MalformedReply("missing_key", f"no arrays under {arrays!r}")
    return ForeignRequest(
        round,
        typed(record, "accepted", int) if "accepted" in record else None,
        typed(record, "seed", int),
        typed(record, "layout", bytes),
        arrays,
        typed(record, "codec", str),
        typed(record, "options", bytes),
        packets_in(records[PACKETS]),
        {name: array for name, array in whole.items() if name != _SIGN},
    )


def write_foreign_reply(reply: Reply, user: RecordDict) -> RecordDict:
    """The user's records with our packets in place of their arrays."""
    kept = {name: record for name, record in user_records(user).items() if not isinstance(record, ArrayRecord)}
    ours = {REPLY: ConfigRecord({"round": reply.round}), PACKETS: ConfigRecord(dict(reply.packets))}
    return RecordDict({**kept, **ours})


def read_foreign_reply(content: RecordDict, *, round: int, packets: frozenset[str], weighted_by: str) -> Reply:
    """The packets and the weight of a train reply."""
    if content.array_records:
        if PACKETS in content:
            raise MalformedReply("extra_key", "arrays beside the packet")
        raise MalformedReply("no_mod", "arrays in place of a packet")
    records = records_in(_ours(content), {REPLY: ConfigRecord, PACKETS: ConfigRecord})
    check_keys(records[REPLY], {"round"})
    check_same_round(records[REPLY], round)
    check_keys(records[PACKETS], set(packets))
    told = read_foreign_metrics(content, round=round, weighted_by=weighted_by)
    return Reply(round, packets_in(records[PACKETS]), told.num_examples)


def read_foreign_metrics(content: RecordDict, *, round: int, weighted_by: str) -> Reply:
    """The weight of a reply: a number in its one MetricRecord, under the key that the app gives FedAvg."""
    found = list(content.metric_records.values())
    if len(found) != 1 or weighted_by not in found[0]:
        raise MalformedReply("missing_key", f"not one MetricRecord that holds {weighted_by!r}")
    weight = number(found[0], weighted_by)
    if not 0 < weight < math.inf:
        raise MalformedReply("weight", f"{weighted_by} must be a finite number above 0")
    return Reply(round, {}, weight)  # type: ignore[arg-type]  # an app may weigh by a float


def user_records(content: RecordDict) -> RecordDict:
    """What is not ours."""
    return RecordDict({name: record for name, record in content.items() if not name.startswith(_OURS)})


def write_residual(state: RecordDict, residual: Residual) -> None:
    """Keep it in the state of a node."""
    vectors = {"before": residual.before, "after": residual.after}
    state[_RESIDUAL] = ConfigRecord({"round": residual.round, "layout": residual.layout, **vectors})


def read_residual(state: RecordDict) -> Residual | None:
    """What `write_residual` kept; None at first."""
    if _RESIDUAL not in state:
        return None
    record = records_in(RecordDict({_RESIDUAL: state[_RESIDUAL]}), {_RESIDUAL: ConfigRecord})[_RESIDUAL]
    check_keys(record, {"round", "layout", "before", "after"})
    return Residual(typed(record, "round", int), *(typed(record, key, bytes) for key in ("layout", "before", "after")))


def _ours(content: RecordDict) -> RecordDict:
    return RecordDict({name: record for name, record in content.items() if name.startswith(_OURS)})
