"""Counts the bytes of messages, and what the same messages would weigh with float32 packets. Knows wire."""

from typing import Any

import numpy as np
from flwr.app import Message

from fedq.codec import Layout, encode
from fedq.flower import wire
from fedq.flower.private import serialized
from fedq.server.round_aggregate import Traffic


class Meter:
    """Adds up every message that passes, as Flower serializes it.

    A protobuf message's length is a function of the lengths of its parts, so a message of a shape that was
    measured before is not serialized again: its length is known exactly.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[tuple[object, ...], tuple[int, int]] = {}
        self._float32: bytes | None = None
        self._traffic = Traffic()
        self._fields: set[str] = set()

    def down(self, message: Message) -> None:
        size, float32 = self._size(message)
        self._traffic.down += size
        self._traffic.float32_down += float32

    def up(self, message: Message) -> None:
        size, float32 = self._size(message)
        self._traffic.up += size
        self._traffic.float32_up += float32
        self._fields |= wire.fields_of(message.content) if message.has_content() else {"error"}

    def take(self) -> Traffic:
        """What passed since the last call."""
        taken, self._traffic = self._traffic, Traffic()
        taken.fields, self._fields = sorted(self._fields), set()
        return taken

    def _size(self, message: Message) -> tuple[int, int]:
        try:
            shape = _shape(message)
        except KeyError:  # a value whose length only Flower can tell
            return self._measured(message)
        if shape not in self._known:
            self._known[shape] = self._measured(message)
        return self._known[shape]

    def _measured(self, message: Message) -> tuple[int, int]:
        size = len(serialized(message))
        packets = wire.packets_of(message.content) if message.has_content() else {}
        packets.pop(wire.MASK, None)  # float32 packets of the dense model are what it is compared with
        if not packets:
            return size, size
        content = message.content
        message.content = wire.with_packets(content, dict.fromkeys(packets, self._float32_packet()))
        try:
            return size, len(serialized(message))
        finally:
            message.content = content

    def _float32_packet(self) -> bytes:
        """A float32 packet of this layout: all have the same length."""
        if self._float32 is None:
            self._float32 = encode(np.zeros(self._layout.size, np.float32), "float32", layout=self._layout)
        return self._float32


def _shape(message: Message) -> tuple[object, ...]:
    """All that the serialized length depends on, whatever the values; KeyError for a value of another type."""
    shape: list[object] = []
    for value in vars(message.metadata).values():
        shape.append(type(value))
        shape.append(_LENGTH[type(value)](value))
    if not message.has_content():
        raise KeyError("error")
    for name, record in message.content.items():
        shape.append(name)
        shape.append(type(record))
        for key, value in record.items():
            shape.append(key)
            shape.append(type(value))
            shape.append(_LENGTH[type(value)](value))
    return tuple(shape)


def _bits(value: int) -> int:
    """Decides the bytes of an integer in each of protobuf's encodings: its bits, and its sign."""
    return value.bit_length() if value >= 0 else ~(~value).bit_length()


def _of_list(values: list[Any]) -> tuple[object, ...]:
    return tuple((type(value), _LENGTH[type(value)](value)) for value in values)


# The type of a value -> what of it decides how many bytes it takes.
_LENGTH: dict[type, Any] = {
    int: _bits,
    float: bool,  # 8 bytes, or none for a zero outside of records
    bool: lambda value: 0,
    str: lambda value: len(value) if value.isascii() else len(value.encode()),
    bytes: len,
    list: _of_list,
    type(None): lambda value: 0,
}
