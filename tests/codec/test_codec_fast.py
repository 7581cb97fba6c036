"""The compiled path and the numpy path are one codec: the same bits, the same refusals, whatever the sizes."""

import numpy as np
import pytest

from fedq.codec import Accumulator, Layout, MalformedUpdate, Segment, decode, encode, jit, threads
from fedq.codec.header import HEADER_BYTES
from tests.codec.test_codec_packet import EVERY_CODEC, forged

pytestmark = pytest.mark.integration

LAYOUT = Layout(
    [
        Segment("norm", (7,)),  # so that the next run begins at an odd index
        Segment("conv", (3, 5, 2731)),  # blocks of any width, and an odd one at the end
        Segment("head", (300,), hint="float32"),
        Segment("dense", (129, 1031)),
        Segment("least", (256,)),
    ]
)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def compiled(request, monkeypatch):
    """Kernels for vectors of any size, on so many threads, in parts as small as they come."""
    monkeypatch.setattr(jit, "LEAST_VALUES", 0)
    monkeypatch.setattr(jit, "LEAST_WORK", 0)
    monkeypatch.setattr(threads, "limit", request.param)
    monkeypatch.setattr("fedq.codec.fast.GRAIN", 8)
    assert jit.kernels(1) is not None


@pytest.fixture
def vector(rng):
    values = rng.standard_t(3, LAYOUT.size).astype(np.float32)
    values[7:1000] = 0
    values[1000:1300] *= np.float32(1e-40)
    return values


def by_numpy(monkeypatch):
    monkeypatch.setattr("fedq.core.jit.load", lambda module: None)
    assert jit.kernels(10**9) is None


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=str)
def test_packets_and_vectors_are_the_same_to_the_bit(codec, compiled, vector, monkeypatch):
    packet = encode(vector, codec, layout=LAYOUT, key=11)
    decoded = decode(packet, LAYOUT)
    by_numpy(monkeypatch)
    assert encode(vector, codec, layout=LAYOUT, key=11) == packet
    assert decode(packet, LAYOUT).tobytes() == decoded.tobytes()


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=str)
def test_sums_are_the_same_to_the_bit(codec, compiled, vector, monkeypatch):
    packets = [encode(np.roll(vector, n), codec, layout=LAYOUT, key=n) for n in range(3)]

    def total(weight):
        accumulator = Accumulator(LAYOUT)
        for packet in packets:
            accumulator.add(packet, weight)
        return accumulator.to_bytes()

    weights = [1.0, 2.0**-20, 600.3, 2.0**13]
    by_kernels = [total(weight) for weight in weights]
    by_numpy(monkeypatch)
    assert [total(weight) for weight in weights] == by_kernels


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_cannot_be_carried_is_refused_alike(codec, value, compiled, vector, monkeypatch):
    vector[-300] = value

    def told():
        try:
            return encode(vector, codec, layout=LAYOUT)
        except ValueError as error:
            return str(error)

    by_kernels = told()
    by_numpy(monkeypatch)
    assert told() == by_kernels


@pytest.mark.slow
@pytest.mark.parametrize("codec", [c for c in EVERY_CODEC if c.name not in ("float32", "float16") and not c.entropy])
def test_every_signed_mutation_is_refused_or_read_alike(codec, compiled, vector, rng, monkeypatch):
    packet = encode(vector, codec, layout=LAYOUT)
    mutations = [
        forged(packet, HEADER_BYTES + int(at), rng.bytes(4))
        for at in rng.integers(0, len(packet) - HEADER_BYTES - 4, 40)
    ]

    def outcome(data):
        try:
            values = decode(data, LAYOUT).tobytes()
        except MalformedUpdate as error:
            values = str(error)
        total = Accumulator(LAYOUT)
        try:
            total.add(data, 3)
        except MalformedUpdate as error:
            return values, str(error), total.to_bytes()
        return values, total.to_bytes()

    by_kernels = [outcome(data) for data in mutations]
    by_numpy(monkeypatch)
    assert [outcome(data) for data in mutations] == by_kernels
