"""Counts the bytes of messages, and what the same messages would weigh with float32 packets. Knows wire."""

import numpy as np
from flwr.app import Message

from fedq import wire
from fedq.codec import Layout, encode
from fedq.runtime.flower import serialized
from fedq.server.total import Traffic


class Meter:
    """Adds up every message that passes, as Flower serializes it.

    A protobuf message's length is a function of the lengths of its parts, so a message of a shape that was
    measured before (same small parts, same packet lengths) is not serialized again: its length is known exactly.
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
        if not message.has_content():
            size = len(serialized(message))
            return size, size
        packets = wire.packets_of(message.content)
        if not packets:
            size = len(serialized(message))
            return size, size
        content = message.content
        message.content = wire.with_packets(content, dict.fromkeys(packets, b""))
        try:
            small = len(serialized(message))
            key = (small, *((name, len(data)) for name, data in packets.items()))
            if key not in self._known:
                message.content = wire.with_packets(content, dict.fromkeys(packets, self._float32_packet()))
                float32 = len(serialized(message))
                message.content = content
                self._known[key] = (len(serialized(message)), float32)
        finally:
            message.content = content
        return self._known[key]

    def _float32_packet(self) -> bytes:
        """A float32 packet of this layout: all have the same length."""
        if self._float32 is None:
            self._float32 = encode(np.zeros(self._layout.size, np.float32), "float32", layout=self._layout)
        return self._float32
