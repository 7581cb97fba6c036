"""A packet inside the messages of another Flower app. Depends on Flower's records; not on arrays, models or policy.

Records under a `fedq.` key belong to fedq and are checked like all its messages; all other records belong to the user
and do not change. The user's arrays are sent as packets. Their record holds only arrays that are sent unchanged, and a
hint for a client without the mod: Flower shows the serialization type of an array that it cannot read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedq.flower.wire.checks import MalformedReply, check_keys, check_same_round, number, packets_in, records_in, typed
from fedq.flower.wire.messages import PACKETS, REPLY, Reply

_OURS, _REQUEST, _RESIDUAL, _HINT_KEY = "fedq.", "fedq.guest", "fedq.residual", "fedq.packet"
_HINT = "fedq packet; add mods=[quantized_mod] to this ClientApp"


@dataclass(frozen=True)
class ForeignRequest:
    """What the mod needs to know besides the user's own records."""

    round: int
    accepted: int | None  # last round in which this node's update counted, -1: none; None: no error feedback
    seed: int  # of stochastic rounding
    layout: bytes  # Layout.to_bytes
    arrays: str  # the user's key of the arrays
    codec: str  # name of the update's codec
    options: bytes  # options of that codec, as in a packet's header
    packets: Mapping[str, bytes] = field(default_factory=dict)
    whole: Mapping[str, Array] = field(default_factory=dict)  # arrays that are sent unchanged


@dataclass(frozen=True)
class Residual:
    """The error-feedback residual in a node's state: little-endian float32, b"" for none."""

    round: int
    layout: bytes  # Layout.digest
    before: bytes
    after: bytes


def write_foreign_request(request: ForeignRequest, user: RecordDict) -> RecordDict:
    """The user's records with fedq's request in place of their arrays."""
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
    hint = Array("uint8", (1,), _HINT, b"\0")
    return RecordDict(
        {
            **user,
            request.arrays: ArrayRecord({_HINT_KEY: hint, **request.whole}),
            _REQUEST: ConfigRecord(values),
            PACKETS: ConfigRecord(dict(request.packets)),
        }
    )


def is_foreign_request(content: RecordDict) -> bool:
    """Whether the message is a request of fedq's adapter; False for a message of another strategy."""
    return _REQUEST in content


def read_foreign_request(content: RecordDict) -> ForeignRequest:
    records = records_in(_ours(content), {_REQUEST: ConfigRecord, PACKETS: ConfigRecord})
    record = records[_REQUEST]
    check_keys(record, {"round", "seed", "layout", "arrays", "codec", "options"}, optional={"accepted"})
    round, arrays = typed(record, "round", int), typed(record, "arrays", str)
    if not 0 <= round < 2**32:  # what a packet's header can hold
        raise MalformedReply("round", f"round {round} is out of range")
    whole = content.get(arrays)
    if not isinstance(whole, ArrayRecord) or _HINT_KEY not in whole:
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
        {name: array for name, array in whole.items() if name != _HINT_KEY},
    )


def write_foreign_reply(reply: Reply, user: RecordDict) -> RecordDict:
    """The user's records with fedq's packets in place of their arrays."""
    kept = {name: record for name, record in user_records(user).items() if not isinstance(record, ArrayRecord)}
    ours = {REPLY: ConfigRecord({"round": reply.round}), PACKETS: ConfigRecord(dict(reply.packets))}
    return RecordDict({**kept, **ours})


def read_foreign_reply(content: RecordDict, *, round: int, packets: frozenset[str], weighted_by: str) -> Reply:
    """Read the packets and the weight of a train reply; MalformedReply for anything else."""
    if content.array_records:
        if PACKETS in content:
            raise MalformedReply("extra_key", "arrays beside the packet")
        raise MalformedReply("no_mod", "arrays in place of a packet")
    records = records_in(_ours(content), {REPLY: ConfigRecord, PACKETS: ConfigRecord})
    check_keys(records[REPLY], {"round"})
    check_same_round(records[REPLY], round)
    check_keys(records[PACKETS], set(packets))
    weighted = read_foreign_metrics(content, round=round, weighted_by=weighted_by)
    return Reply(round, packets_in(records[PACKETS]), weighted.num_examples)


def read_foreign_metrics(content: RecordDict, *, round: int, weighted_by: str) -> Reply:
    """Read the weight of a reply: a number in its one MetricRecord, under the key that the app gives FedAvg."""
    found = list(content.metric_records.values())
    if len(found) != 1 or weighted_by not in found[0]:
        raise MalformedReply("missing_key", f"not one MetricRecord that holds {weighted_by!r}")
    weight = number(found[0], weighted_by)
    if not 0 < weight < math.inf:
        raise MalformedReply("weight", f"{weighted_by} must be a finite number above 0")
    return Reply(round, {}, weight)  # type: ignore[arg-type]  # an app may use a float as weight


def user_records(content: RecordDict) -> RecordDict:
    """The records that belong to the user."""
    return RecordDict({name: record for name, record in content.items() if not name.startswith(_OURS)})


def write_residual(state: RecordDict, residual: Residual) -> None:
    """Store the residual in the state of a node."""
    vectors = {"before": residual.before, "after": residual.after}
    state[_RESIDUAL] = ConfigRecord({"round": residual.round, "layout": residual.layout, **vectors})


def read_residual(state: RecordDict) -> Residual | None:
    """Read what `write_residual` stored; None at first."""
    if _RESIDUAL not in state:
        return None
    record = records_in(RecordDict({_RESIDUAL: state[_RESIDUAL]}), {_RESIDUAL: ConfigRecord})[_RESIDUAL]
    check_keys(record, {"round", "layout", "before", "after"})
    return Residual(typed(record, "round", int), *(typed(record, key, bytes) for key in ("layout", "before", "after")))


def _ours(content: RecordDict) -> RecordDict:
    return RecordDict({name: record for name, record in content.items() if name.startswith(_OURS)})
