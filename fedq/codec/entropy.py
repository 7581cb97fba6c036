"""The lossless last stage: deflate the levels of a packet (RFC 1951). Depends on bytes; does not know levels.

Raw deflate with run lengths and Huffman codes only (Z_RLE): levels contain no long repeated patterns, and a search for
them takes ten times as long without a gain. Any inflater can read the result. The bytes may differ between zlib
versions; the inflated levels do not.
"""

import zlib

from fedq.codec.malformed import MalformedUpdate

_RAW = -15  # a window of 32 kB, no zlib header: the packet has its own checksum


def deflate(levels: bytes | memoryview) -> bytes:
    packer = zlib.compressobj(level=6, wbits=_RAW, memLevel=9, strategy=zlib.Z_RLE)
    return packer.compress(levels) + packer.flush()


def inflate(packed: memoryview, length: int) -> bytes:
    """Inflate to exactly `length` bytes, else MalformedUpdate. At most length + 1 bytes are ever inflated."""
    unpacker = zlib.decompressobj(wbits=_RAW)
    try:
        # One byte more than needed, to detect surplus data. A limit of 0 would mean no limit.
        levels = unpacker.decompress(packed, length + 1)
    except zlib.error as error:
        raise MalformedUpdate("deflate", f"the levels cannot be inflated ({error})") from None
    if len(levels) != length or not unpacker.eof:
        found = f"inflate to {'more than ' if len(levels) > length else ''}{min(len(levels), length)} bytes"
        raise MalformedUpdate("deflate", f"the levels {found}, or end early: must be {length}")
    if unpacker.unused_data:
        raise MalformedUpdate("deflate", f"{len(unpacker.unused_data)} bytes after the deflated levels")
    return levels
