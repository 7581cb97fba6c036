"""The loops of the codecs, compiled by numba. Re-exports the kernels; does not know packets, threads or errors.

The results are bit for bit those of uniform.py, accumulator.py, bits.py, rotation.py and lloyd.py with numpy. Each
kernel works on a contiguous part of a run that starts and stops at a block, so that threads can share a run. Arguments
are not checked: an array that is too short is read or written beyond its end.

To keep the bits: no fastmath; combine float32 only with float32 (numba widens with a Python float); combine uint64 only
with uint64 (with int64 numba turns to float64). For vectorised code: arrays are sliced first and then indexed from 0,
and the largest magnitude is found on the integer bits, which have the order of the magnitudes with infinity and NaN
last.
"""

from fedq.codec.kernels_bits import pack, unpack
from fedq.codec.kernels_rotation import decode_lloyd, encode_lloyd, rotate_run, unrotate_run
from fedq.codec.kernels_uniform import (
    add_eight,
    add_uniform,
    add_vector,
    check_uniform,
    decode_uniform,
    encode_uniform,
    largest_magnitude,
)

__all__ = [
    "add_eight",
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
