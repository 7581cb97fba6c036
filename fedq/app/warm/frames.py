"""Bytes over a stream socket, each piece with its length in front. Knows sockets; not what the bytes mean."""

import socket
import struct
from typing import Final

READY: Final = b"R"  # the fork has the whole message, and has not begun
GO: Final = b"G"  # begin: from here on nobody else may do the work
LARGEST: Final = 2**31  # bytes in one piece, as in a message of Flower
_LENGTH: Final = struct.Struct("<Q")


def send(link: socket.socket, *pieces: bytes) -> None:
    """Send all pieces. OSError if the other end is gone."""
    for piece in pieces:
        link.sendall(_LENGTH.pack(len(piece)))
        link.sendall(piece)


def receive(link: socket.socket) -> bytes:
    """One piece. EOFError if the other end is gone before its end; ValueError if it is too long."""
    (length,) = _LENGTH.unpack(exactly(link, _LENGTH.size))
    if length > LARGEST:
        raise ValueError(f"a piece of {length} bytes, of at most {LARGEST}")
    return exactly(link, length)


def exactly(link: socket.socket, length: int) -> bytes:
    """So many bytes. EOFError if the other end is gone before."""
    data = bytearray(length)
    view = memoryview(data)
    got = 0
    while got < length:
        count = link.recv_into(view[got:])
        if not count:
            raise EOFError(f"the connection ended after {got} of {length} bytes")
        got += count
    return bytes(data)
