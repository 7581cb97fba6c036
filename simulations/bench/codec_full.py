"""What `--full` adds to the codec's lines: sizes from 10^4 to 10^8, one core and all, and bytes to an accuracy."""

from collections.abc import Iterator
from statistics import fmean

import numpy as np

from fedq.codec import Accumulator, Int8, Layout, encode, threads
from simulations.bench.row import Row
from simulations.bench.timing import medians, num_cores
from simulations.bench.vectors import gaussian

SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
CODEC = Int8(rounding="stochastic")


def rows() -> Iterator[Row]:
    for size in SIZES:
        for cores in sorted({1, num_cores()}):
            yield from _size(size, cores)
    for setting in ("cross_device", "cross_silo"):
        yield _bytes_to_target(setting)


def _size(size: int, cores: int) -> Iterator[Row]:
    layout, vector, copied = Layout.flat(size), gaussian(size), np.empty(size, np.float32)
    packets, total = [encode(vector, CODEC, layout=layout, key=key) for key in range(8)], Accumulator(layout)
    times = max(1, 10**6 // size)  # so that one timing takes long enough

    def copy() -> None:
        for _ in range(times):
            np.copyto(copied, vector)

    def pack() -> None:
        for _ in range(times):
            encode(vector, CODEC, layout=layout, key=1)

    def add() -> None:
        for _ in range(times):
            for packet in packets:
                total.add(packet, 1.0)

    threads.limit = cores
    try:
        seconds = medians({"copy": copy, "encode": pack, "add": add}, repeats=5 if size > 10**7 else 9)
    finally:
        threads.limit = None
    ms = {name: 1e3 * taken / times for name, taken in seconds.items()}
    text = f"{size:,} parameters in one tensor, {cores} thread(s); over numpy.copyto on one"
    name = f"{size:.0e}_{cores}".replace("e+0", "e")
    yield Row(f"encode_int8_{name}", ms["encode"], ms["copy"], "ms", "ours/reference", f"stochastic encode: {text}")
    words = f"check, decode and add a packet, one of 8: {text}"
    yield Row(f"accumulate_int8_{name}", ms["add"] / 8, ms["copy"], "ms", "ours/reference", words)


def _bytes_to_target(setting: str) -> Row:
    """From the result files of the recipe, which takes an hour and a half: this runs nothing."""
    from simulations.codec_accuracy import TARGET, bytes_to, found_in

    mean = {}
    for name, results in found_in(setting, run=False).items():
        reached = [bytes_to(result, TARGET) for result in results]
        if None not in reached:
            mean[name] = fmean(r for r in reached if r) / 1e6
    best = min(mean, key=lambda name: mean[name])
    words = f"bytes to {TARGET:.0%} in the {setting} setting, float32 over {best}; from simulations/results"
    name = "bytes_to_85" if setting == "cross_device" else f"bytes_to_85_{setting}"
    return Row(name, mean[best], mean["float32"], "MB", "reference/ours", words)
