"""The lossless last stage: the levels of a packet, deflated (RFC 1951). Knows bytes; not levels.

Raw deflate with run lengths and Huffman codes only (Z_RLE): levels repeat no longer patterns, and a search for them
takes ten times as long for nothing. What a reader needs is any inflater; which bytes an encoder writes may differ from
one zlib to another, what they inflate to does not.
"""

import zlib

from fedq.codec.malformed import MalformedUpdate

_RAW = -15  # a window of 32 kB, no zlib header: the packet has its own checksum


def deflate(levels: bytes | memoryview) -> bytes:
    packer = zlib.compressobj(level=6, wbits=_RAW, memLevel=9, strategy=zlib.Z_RLE)
    return packer.compress(levels) + packer.flush()


def inflate(packed: memoryview, length: int) -> bytes:
    """Exactly `length` bytes, or MalformedUpdate; never more than that is inflated, whatever is packed."""
    unpacker = zlib.decompressobj(wbits=_RAW)
    try:
        # One more than asked for: enough to see that there is more. 0 would mean no limit.
        levels = unpacker.decompress(packed, length + 1)
    except zlib.error as error:
        raise MalformedUpdate("deflate", f"the levels do not inflate ({error})") from None
    if len(levels) != length or not unpacker.eof:
        told = f"inflate to {'more than ' if len(levels) > length else ''}{min(len(levels), length)} bytes"
        raise MalformedUpdate("deflate", f"the levels {told}, or end early: must be {length}")
    if unpacker.unused_data:
        raise MalformedUpdate("deflate", f"{len(unpacker.unused_data)} bytes after the deflated levels")
    return levels
