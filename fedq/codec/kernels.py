"""The loops of the codecs, compiled by numba. Knows where each is; not packets, threads or errors.

Bit for bit what uniform.py, accumulator.py, bits.py, rotation.py and lloyd.py compute with numpy. Each works on a
contiguous part of a run that starts and stops at blocks, so that threads can share a run. Nobody checks arguments:
an array that is too short is read or written beyond its end.

To keep the bits: no fastmath; float32 meets float32 only (with a Python float numba widens); uint64 meets uint64 only
(with int64 numba turns to float64). To be vectorised: arrays are sliced first and then indexed from 0, and the largest
magnitude is found among the integer bits, which order as magnitudes do and put infinity and NaN last.
"""

from fedq.codec.kernels_bits import pack, unpack
from fedq.codec.kernels_rotation import decode_lloyd, encode_lloyd, rotate_run, unrotate_run
from fedq.codec.kernels_uniform import (
    add_uniform,
    add_vector,
    check_uniform,
    decode_uniform,
    encode_uniform,
    largest_magnitude,
)

__all__ = [
    "add_uniform",
    "add_vector",
    "check_uniform",
    "decode_lloyd",
    "decode_uniform",
    "encode_lloyd",
    "encode_uniform",
    "largest_magnitude",
    "pack",
    "rotate_run",
    "unpack",
    "unrotate_run",
]
