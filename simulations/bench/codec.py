"""The codec beside a plain copy of the vector, Flower's own float32 aggregation, and what theory allows."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from math import log2
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedq.codec import Accumulator, Codec, Int2, Int4, Int8, Layout, Sign, decode, encode, jit
from fedq.codec.bits import unpack
from fedq.codec.header import HEADER_BYTES
from fedq.flower import wire
from fedq.flower.private import enter, serialized
from simulations.bench import codec_full
from simulations.bench.row import Row
from simulations.bench.timing import FULL, Contender, Effort, medians, num_cores
from simulations.bench.vectors import gaussian, real_update, resnet18

ROOT = Path(__file__).parents[2]
CLIENTS = 8  # that are added in one go, on both sides; a time is for one of them
LLOYD_MAX = {1: 0.5708, 2: 0.1331, 4: 0.009592}  # 1 / (1 - D) - 1, D the distortion of Max (1960), table I
ROTATED: dict[int, Codec] = {1: Sign(rotate=True), 2: Int2(rotate=True), 4: Int4(rotate=True)}
FEW: dict[str, Codec] = {"int8": Int8(), "int4": Int4(), "int2": Int2(), "sign": Sign()}


def rows(effort: Effort) -> Iterator[Row]:
    """Times, bytes, distortion, memory."""
    layout = resnet18()
    jit.load()  # as a process has them that packs and unpacks all the time
    yield from _times(layout, effort)
    yield from _sizes(layout)
    yield from _distortion()
    yield _memory()
    yield _entropy()
    yield _compilation()
    if effort.repeats >= FULL.repeats:
        yield from codec_full.rows()


def _times(layout: Layout, effort: Effort) -> Iterator[Row]:
    vector = gaussian(layout.size)
    copied = np.empty_like(vector)
    stochastic, one_bit = Int8(rounding="stochastic"), Sign(rotate=True)
    bit_packet = encode(vector, one_bit, layout=layout)
    packets = [encode(np.roll(vector, n), stochastic, layout=layout, key=n) for n in range(CLIENTS)]
    total, records = Accumulator(layout), [_record(layout, vector) for _ in range(CLIENTS)]

    def accumulate() -> None:
        for each in packets:
            total.add(each, 100.0)

    def accumulate_one() -> None:
        total.add(packets[0], 100.0)
        total.settle()

    contenders: dict[str, Contender] = {
        "copy": lambda: np.copyto(copied, vector),
        "encode": lambda: _done(encode(vector, stochastic, layout=layout, key=1)),
        "accumulate": accumulate,
        "accumulate_one": accumulate_one,
        "flower": lambda: _done(aggregate_arrayrecords(records, "num-examples")),
        "encode_bit": lambda: _done(encode(vector, one_bit, layout=layout, key=1)),
        "decode_bit": lambda: _done(decode(bit_packet, layout)),
    }
    seconds = medians(contenders, repeats=effort.repeats, warmups=2)
    ms = {name: 1e3 * taken for name, taken in seconds.items()}
    for name in ("accumulate", "flower"):
        ms[name] /= CLIENTS
    ours = f"{layout.size:,} parameters in {len(layout.averaged)} tensors, {num_cores()} threads, checksum included"
    copy = "numpy.copyto of the float32 vector, one thread"
    for name, key, words in (
        ("encode_int8_stochastic", "encode", "vector to packet"),
        ("accumulate_int8", "accumulate", f"check, decode and add a packet, as runs do, one of {CLIENTS}"),
        ("accumulate_int8_alone", "accumulate_one", "the same of a packet that no other comes with"),
        ("encode_1bit_rotated", "encode_bit", "randomized Hadamard rotation, one bit a value, unbiased"),
        ("decode_1bit_rotated", "decode_bit", "packet to vector"),
    ):
        yield Row(name, ms[key], ms["copy"], "ms", "ours/reference", f"{words}: {ours}; over {copy}")
    flower = f"aggregate_arrayrecords of {CLIENTS} float32 clients, for one of them, over ours"
    yield Row(
        "accumulate_int8_vs_flower",
        ms["accumulate"],
        ms["flower"],
        "ms",
        "reference/ours",
        f"Flower's {flower}",
    )


def _done(made: object) -> None:
    """A contender returns seconds or nothing."""


def _record(layout: Layout, vector: np.ndarray) -> RecordDict:
    arrays = ArrayRecord({name: Array(array) for name, array in layout.unflatten(vector).items()})
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 100})})


def _sizes(layout: Layout) -> Iterator[Row]:
    """Bytes of a client's whole reply, as Flower serializes it."""
    enter()
    vector = gaussian(layout.size)
    plain = _reply_bytes(encode(vector, "float32", layout=layout))
    for name, codec in FEW.items():
        size = _reply_bytes(encode(vector, codec, layout=layout))
        words = f"a client's reply with an {name} packet, over the same with float32 packets"
        yield Row(f"packet_bytes_{name}", size, plain, "bytes", "ours/reference", words)
    arrays = len(serialized(Message(_record(layout, vector), 1, wire.TRAIN))) - 4 * layout.size
    words = f"what a reply weighs beside its values, {len(layout.averaged)} tensors; over Flower's own ArrayRecord"
    yield Row("packet_overhead", plain - 4 * layout.size, arrays, "bytes", "ours/reference", words)


def _reply_bytes(packet: bytes) -> int:
    reply = wire.write_reply(wire.Reply(1, {wire.UPDATE: packet}, 100, 0.5))
    return len(serialized(Message(reply, 1, wire.TRAIN)))


def _distortion() -> Iterator[Row]:
    values, layout = gaussian(2**20), Layout.flat(2**20)
    real_layout, update, _ = real_update()
    what = "mean of |decoded - x|^2 / |x|^2 over 4 rotations, unbiased scale"
    for bits, codec in ROTATED.items():
        words = f"{what}: 2^20 Gaussian values, over Lloyd-Max's for an unbiased scale"
        yield Row(f"nmse_{bits}bit", _nmse(values, codec, layout), LLOYD_MAX[bits], "", "ours/reference", words)
        words = f"{what}: the update of one epoch ({update.size:,} parameters), over the same"
        name = f"nmse_{bits}bit_update"
        yield Row(name, _nmse(update, codec, real_layout), LLOYD_MAX[bits], "", "ours/reference", words)


def _nmse(vector: np.ndarray, codec: Codec, layout: Layout) -> float:
    x = vector.astype(np.float64)
    errors = [np.sum((decode(encode(vector, codec, layout=layout, key=key), layout) - x) ** 2) for key in range(4)]
    return float(np.mean(errors) / np.sum(x * x))


def _memory() -> Row:
    few, many = (_peak(packets) for packets in (10, 1000))
    words = "peak memory of a fresh process that adds 1,000 int8 packets of 10^6 parameters, over one that adds 10"
    return Row("stream_peak_memory", many, few, "kB", "ours/reference", words)


def _peak(packets: int) -> float:
    command = [sys.executable, "-m", "simulations.bench.codec_stream", str(packets)]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def _compilation() -> Row:
    """In a cache of its own, so that the first process compiles and the second reads."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "simulations.bench.codec_jit"]
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        seconds = [
            float(
                subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True).stdout
            )
            for _ in range(2)
        ]
    words = (
        "seconds until all kernels are ready in a fresh process: from numba's cache, over compiled for the first time"
    )
    return Row("jit_compile", seconds[1], seconds[0], "s", "ours/reference", words)


def _entropy() -> Row:
    layout, update, _ = real_update()
    codec, sizes = Int4(), [run.stop - run.start for run in layout.runs]
    packed = [size for run, size in zip(layout.runs, sizes, strict=True) if not run.verbatim]
    plain = encode(update, codec, layout=layout)
    level_bytes = sum(codec.num_level_bytes(size) for size in packed)
    deflated = level_bytes - len(plain) + len(encode(update, Int4(entropy=True), layout=layout))
    levels, codes, at = np.frombuffer(plain, np.uint8)[HEADER_BYTES:][-level_bytes:], [], 0
    for size in packed:
        count = codec.num_level_bytes(size)
        codes.append(unpack(levels[at : at + count], codec.bits, size))
        at += count
    shares = np.bincount(np.concatenate(codes)) / sum(packed)
    ideal = -sum(share * log2(share) for share in shares if share)
    spent = 8 * deflated / sum(packed)
    words = (
        f"deflated int4 levels of a real update, over their entropy one by one: a gap of {spent - ideal:+.3f} bits "
        "(below zero where levels repeat, as those of units that no example reaches)"
    )
    return Row("entropy_gap", spent, ideal, "bits/parameter", "ours/reference", words)
