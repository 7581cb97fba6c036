"""Frames between a run and its workers: what goes in comes out, and a torn one is an error, not a value."""

import io
import os
import struct

import pytest

from fedq.runtime.frames import read_frame, write_frame

HEAD = {"round": 3, "task": "train", "accepted": {"7": -1, "Zürich": 2}}
BLOBS = {"model": bytes(range(256)), "empty": b"", "Größe": b"\x00"}


def framed(*frames):
    stream = io.BytesIO()
    for head, blobs in frames:
        write_frame(stream, head, blobs)
    return stream.getvalue()


@pytest.mark.parametrize("blobs", [{}, {"model": b""}, BLOBS])
def test_a_frame_comes_back(blobs):
    assert read_frame(io.BytesIO(framed((HEAD, blobs)))) == (HEAD, blobs)


def test_frames_follow_each_other():
    stream = io.BytesIO(framed(({"n": 1}, BLOBS), ({"n": 2}, None), ({"n": 3}, {"x": b"y"})))
    assert [read_frame(stream) for _ in range(4)] == [({"n": 1}, BLOBS), ({"n": 2}, {}), ({"n": 3}, {"x": b"y"}), None]


def test_a_closed_stream_has_no_frame():
    assert read_frame(io.BytesIO(b"")) is None


def test_a_frame_torn_in_any_place_is_no_frame():
    """A worker that dies in the middle must not be read as a smaller answer."""
    whole = framed((HEAD, BLOBS))
    for cut in range(1, len(whole)):
        stream = io.BytesIO(whole[:cut])
        if cut < 8:  # not even the lengths: the same as a closed stream
            assert read_frame(stream) is None
        else:
            with pytest.raises(EOFError, match="in the middle of a frame"):
                read_frame(stream)


def test_the_lengths_stand_in_front():
    assert framed(({}, {"ab": b"xyz"})) == struct.pack("<II", 2, 1) + b"{}" + struct.pack("<IQ", 2, 3) + b"abxyz"


def test_a_frame_larger_than_a_pipes_buffer_passes():
    import threading

    blob = os.urandom(1 << 20)
    out, into = os.pipe()
    with open(out, "rb") as reader, open(into, "wb") as writer:
        thread = threading.Thread(target=write_frame, args=(writer, HEAD, {"model": blob}))
        thread.start()
        assert read_frame(reader) == (HEAD, {"model": blob})
        thread.join()


def test_a_blob_of_a_view_passes():
    """What the codec hands over may be a bytearray."""
    assert read_frame(io.BytesIO(framed(({}, {"m": bytearray(b"abc")})))) == ({}, {"m": b"abc"})
