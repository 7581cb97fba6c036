"""A few of the mutations that `make fuzz` runs by the hundred thousand, and that the oracle sees what it should."""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from fedq.codec import CODECS, Layout, MalformedUpdate, blockwise, encode, jit, packet
from fedq.codec.entropy import inflate
from tests.fuzz import campaign
from tests.fuzz.mutate import case_of, sealed
from tests.fuzz.oracle import Case, ViolationError, check
from tests.fuzz.seeds import codecs, seeds

LAYOUT = Layout.flat(256)
DECODE = packet.decode


@pytest.fixture
def good():
    return Case("packet", encode(np.linspace(-1, 1, 256, dtype=np.float32), "int8", layout=LAYOUT), LAYOUT)


@pytest.mark.integration
def test_mutations_give_known_reasons_or_what_the_packet_declares():
    tally = campaign.run(range(1200), seed=5)
    assert tally.violations == []
    assert {"finite vector", "scale", "level", "indices", "deflate", "options"} <= tally.outcomes.keys()


@pytest.mark.integration
def test_every_codec_and_every_option_is_mutated():
    assert {codec.name for codec in codecs()} == set(CODECS)
    for option in ("rotate", "error_feedback", "entropy"):
        assert any(getattr(codec, option, False) is True for codec in codecs())
    assert {seed.codec for seed in seeds()} == set(codecs())


def test_a_mutation_is_named_by_seed_and_number():
    assert [case_of(seed=3, number=n).data for n in range(40)] == [case_of(seed=3, number=n).data for n in range(40)]
    assert case_of(seed=3, number=0).data != case_of(seed=4, number=0).data


def test_the_compiled_kernels_read_mutations_too(good, monkeypatch):
    asked = []
    monkeypatch.setattr("fedq.core.jit.load", lambda module: asked.append(jit.LEAST_VALUES))  # None: numpy goes on
    assert check(replace(good, compiled=True)) == "finite vector"
    assert set(asked) == {0}


# --- planted faults ---


def decoded_and(change):
    """A decode whose vector is changed before anybody sees it."""

    def changed(*arguments, **named):
        vector = DECODE(*arguments, **named)
        change(vector)
        return vector

    return changed


def raising(error):
    def fails(*arguments, **named):
        raise error

    return fails


@pytest.mark.parametrize(
    ("planted", "seen"),
    [
        (decoded_and(lambda v: v.put(7, np.nan)), "must be finite"),
        (decoded_and(lambda v: v.put(7, np.inf)), "must be finite"),
        (decoded_and(lambda v: v.put(7, 1.001)), "beyond the largest level"),
        (decoded_and(lambda v: v.put(7, 0.5)), "the sums are not those"),
        (raising(IndexError("index 9 is out of bounds")), "IndexError: index 9 is out of bounds"),
        (raising(RuntimeWarning("overflow encountered")), "RuntimeWarning: overflow encountered"),
        (raising(MalformedUpdate("scale", "of a good packet")), "adding it gives None: expected scale"),
        (lambda *a, **n: DECODE(*a, **n).astype(np.float64), "decoded to float64"),
        (lambda *a, **n: DECODE(*a, **n) + np.random.default_rng().uniform(0, 1e-3), "read again it gives|beyond"),
    ],
)
def test_a_planted_fault_is_seen(good, planted, seen, monkeypatch):
    assert check(good) == "finite vector"
    monkeypatch.setattr(packet, "decode", planted)
    with pytest.raises(ViolationError, match=seen):
        check(good)


def test_mutations_find_a_planted_fault(monkeypatch):
    monkeypatch.setattr(blockwise.Blockwise, "check_scales", lambda self, scales: None)
    assert any("a scale of" in what for _, what in campaign.run(range(400), seed=1).violations)


def test_an_inflater_without_a_limit_is_seen(monkeypatch):
    def unlimited(packed, length):
        return inflate(packed, 2**22)[:length]

    start = next(seed for seed in seeds() if seed.codec.entropy and seed.layout.size == 256)
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(bytes(2**22)) + packer.flush()
    case = Case("packet", sealed(start.packet[: 72 + 4 * start.num_scales] + bomb), start.layout, measured=True)
    assert check(case) == "deflate"
    monkeypatch.setattr(packet, "inflate", unlimited)
    with pytest.raises(ViolationError, match="bytes were allocated"):
        check(case)
