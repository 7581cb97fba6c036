"""A Flower mod: an app's own functions see plain arrays, the network sees packets. Knows wire and codec; no models."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from fedq import codec as packets
from fedq.client.residual import Residual
from fedq.core.randomness import key64
from fedq.flower import wire


def quantized_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Unpack what `QuantizedFedAvg` sends and pack what the app answers; under another strategy it does nothing.

        from fedq import quantized_mod
        app = ClientApp(mods=[quantized_mod])

    The app's functions get the names, shapes and dtypes of the server's `state_dict`, and answer with one
    ArrayRecord of the same names and shapes, as they do under FedAvg. The server chooses the codec of the update.
    """
    if not wire.is_foreign_request(message.content):
        return call_next(message, context)
    request = wire.read_foreign_request(message.content)
    layout, codec = packets.Layout.from_bytes(request.layout), packets.codec_of(request.codec, request.options)
    if wire.MODEL not in request.packets:
        raise wire.MalformedReply("missing_key", f"no {wire.MODEL} packet in the request")
    weights = packets.decode(request.packets[wire.MODEL], layout, round=request.round, kind="weights")
    handed = _unpacked(weights, layout, request.whole)
    message.content = RecordDict({**wire.user_records(message.content), request.arrays: handed})
    reply = call_next(message, context)
    if message.metadata.message_type != wire.TRAIN or reply.has_error():
        return reply
    trained = _vector(_only_arrays(reply.content), layout)
    # Against what the app was handed, so that a cast to its dtype is not taken for training.
    update = trained - _vector(handed, layout)
    packet = _packed(update, weights, layout, codec, request, context)
    reply.content = wire.write_foreign_reply(wire.Reply(request.round, {wire.UPDATE: packet}), reply.content)
    return reply


def _unpacked(weights: np.ndarray, layout: packets.Layout, whole: Mapping[str, Array]) -> ArrayRecord:
    """The app's arrays, in its own order and dtypes."""
    averaged, record = layout.unflatten(weights), ArrayRecord()
    for segment in layout.segments:
        if segment.dtype == "bfloat16":
            raise wire.MalformedReply("wrong_type", f"array {segment.name!r} is bfloat16, which no Flower record holds")
        if segment.role == "averaged":
            with np.errstate(over="ignore", under="ignore"):
                record[segment.name] = Array(averaged[segment.name].astype(segment.dtype))
            continue
        array = whole.get(segment.name)
        if array is None or (array.dtype, tuple(array.shape)) != (segment.dtype, segment.shape):
            raise wire.MalformedReply("missing_key", f"no array {segment.name!r} as the layout describes it")
        record[segment.name] = array
    if extra := set(whole) - set(record):
        raise wire.MalformedReply("extra_key", f"arrays {sorted(extra)[:5]} are not in the layout")
    return record


def _only_arrays(content: RecordDict) -> ArrayRecord:
    found = list(content.array_records.values())
    if len(found) != 1:
        raise ValueError(f"the train function answered with {len(found)} ArrayRecords: must be one, the trained arrays")
    return found[0]


def _vector(arrays: ArrayRecord, layout: packets.Layout) -> np.ndarray:
    try:
        return layout.flatten({name: array.numpy() for name, array in arrays.items()})
    except ValueError as error:
        raise ValueError(
            f"the train function answered with other arrays than it was sent: {error}; "
            "answer with the state_dict of the same model as the server's"
        ) from error


def _packed(
    update: np.ndarray,
    weights: np.ndarray,
    layout: packets.Layout,
    codec: packets.Codec,
    request: wire.ForeignRequest,
    context: Context,
) -> bytes:
    """The packet of an update, with what earlier packets lost where the server asks for error feedback."""
    before = None if request.accepted is None else _recall(context, layout, request.accepted)
    if before is not None:
        update = update + before
    packet = packets.encode(
        update,
        codec,
        layout=layout,
        kind="delta",
        round=request.round,
        base=packets.digest(weights),
        key=key64(request.seed, wire.UPDATE, request.round, context.node_id),
    )
    if request.accepted is not None:
        after = update - packets.decode(packet, layout)
        wire.write_residual(context.state, _stored(request.round, layout, before, after))
    return packet


def _recall(context: Context, layout: packets.Layout, accepted: int) -> np.ndarray | None:
    """The residual that counts. None for another model's, and if no update of this run counted yet."""
    stored = wire.read_residual(context.state)
    if stored is None or stored.layout != layout.digest or accepted < 0:
        return None
    before, after = (np.frombuffer(data, "<f4") if data else None for data in (stored.before, stored.after))
    return Residual(stored.round, before, after).counted(accepted)


def _stored(round: int, layout: packets.Layout, before: np.ndarray | None, after: np.ndarray) -> wire.Residual:
    kept = b"" if before is None else before.astype("<f4").tobytes()
    return wire.Residual(round, layout.digest, kept, after.astype("<f4").tobytes())
