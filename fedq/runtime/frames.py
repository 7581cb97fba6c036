"""Length-prefixed frames between a run and its workers: a JSON header and named byte strings. Nothing is pickled."""

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

_LENGTHS = struct.Struct("<II")  # bytes of the header, number of blobs
_BLOB = struct.Struct("<IQ")  # bytes of the name, bytes of the blob


def write_frame(stream: IO[bytes], head: Mapping[str, Any], blobs: Mapping[str, bytes] | None = None) -> None:
    text = json.dumps(head).encode()
    stream.write(_LENGTHS.pack(len(text), len(blobs or {})))
    stream.write(text)
    for name, blob in (blobs or {}).items():
        stream.write(_BLOB.pack(len(name.encode()), len(blob)))
        stream.write(name.encode())
        stream.write(blob)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """Read the next frame; None if the other side has closed the stream."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head_bytes, count = _LENGTHS.unpack(lengths)
    head = json.loads(_exactly(stream, head_bytes))
    blobs = {}
    for _ in range(count):
        name_bytes, blob_bytes = _BLOB.unpack(_exactly(stream, _BLOB.size))
        name = _exactly(stream, name_bytes).decode()
        blobs[name] = _exactly(stream, blob_bytes)
    return head, blobs


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError("the other process ended in the middle of a frame")
    return data
