"""Valid packets to mutate: every codec with every combination of its options, on every layout. Knows no mutation."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np

from fedq.codec import CODECS, Accumulator, Layout, Segment, encode
from fedq.codec.codec import Codec
from fedq.codec.options import ROUNDINGS

BASE = bytes(range(1, 17))
HEADER_BYTES = 72  # of a packet and of an accumulator, both with the checksum in the last 8
# What a field of a codec's dataclass is tried with; a bool is tried both ways, any other field stays as it is.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "block": (16, 256, 1000, 65536),
    "rounding": ROUNDINGS,
    "fraction": (1e-6, 0.03, 0.5, 1.0),
}
LAYOUTS = {
    "empty": Layout.flat(0),
    "one value": Layout.flat(1),
    "tiny": Layout([Segment("a", (3,)), Segment("none", (0, 4)), Segment("b", (2, 2))]),
    "mixed": Layout(
        [
            Segment("norm", (7,)),
            Segment("conv", (3, 107)),
            Segment("steps", (), "int64", role="local"),
            Segment("bias", (5,)),
            Segment("dense", (257,)),
            Segment("embedding", (2,), role="frozen", content=BASE),
        ]
    ),
    "hint": Layout([Segment("head", (300,), hint="float32"), Segment("body", (259,))]),
    "one block": Layout.flat(256),
    "large": Layout.flat(2989),
}
KINDS = ("delta", "weights")
ROUNDS = (0, 7, 2**32 - 1)


@dataclass(frozen=True)
class Seed:
    """A packet that decodes, and what it was made of."""

    codec: Codec
    layout: Layout
    packet: bytes
    told: tuple[tuple[str, Any], ...]  # kind, round, base

    @property
    def num_scales(self) -> int:
        return sum(
            run.stop - run.start if run.verbatim else self.codec.num_scales(run.stop - run.start)
            for run in self.layout.runs
        )

    @property
    def num_level_bytes(self) -> int:
        """Before they are deflated."""
        return level_bytes(self.codec, self.layout)


def level_bytes(codec: Codec, layout: Layout) -> int:
    return sum(codec.num_level_bytes(run.stop - run.start) for run in layout.runs if not run.verbatim)


@cache
def codecs() -> tuple[Codec, ...]:
    """Every combination of options that a codec accepts, each once."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(_accepted(made) for made in CODECS.values())))


def _accepted(made: type[Codec]) -> Iterator[Codec]:
    tried = {}
    for field in fields(made):  # type: ignore[arg-type]  # every codec is a dataclass
        if field.type in (bool, "bool"):
            tried[field.name] = (False, True)
        elif field.name in OPTIONS:
            tried[field.name] = OPTIONS[field.name]
    for values in itertools.product(*tried.values()):
        try:
            yield made(**dict(zip(tried, values, strict=True)))
        except ValueError:  # a combination that the codec itself refuses
            continue


def vectors(size: int) -> list[np.ndarray]:
    """Normal, zeros, denormal, of huge range, one-hot, constant."""
    rng = np.random.default_rng(size)
    normal = rng.normal(size=size).astype(np.float32)
    one_hot = np.zeros(size, np.float32)
    one_hot[size // 2 : size // 2 + 1] = -3
    with np.errstate(under="ignore"):
        huge = (normal * 10.0 ** rng.uniform(-44, 37, size)).astype(np.float32)
    return [
        normal,
        np.zeros(size, np.float32),
        (normal * 1e-41).astype(np.float32),
        huge,
        one_hot,
        np.full(size, 60000, np.float32),
    ]


@cache
def seeds() -> tuple[Seed, ...]:
    """Each codec of `codecs` on each layout, with vector, kind, round and base in turn."""
    known = {name: vectors(layout.size) for name, layout in LAYOUTS.items()}
    made = []
    for turn, (codec, (name, layout)) in enumerate(itertools.product(codecs(), LAYOUTS.items())):
        told = {"kind": KINDS[turn % 2], "round": ROUNDS[turn % 3], "base": (b"", BASE)[turn // 2 % 2]}
        packet = None
        for vector in _from(known[name], turn):
            try:
                packet = encode(vector, codec, layout=layout, key=turn, **told)
                break
            except ValueError:  # float16, or a rotated codec, cannot carry the huge one
                continue
        assert packet is not None, f"{codec} on layout {name!r} carries none of the vectors"
        made.append(Seed(codec, layout, packet, tuple(told.items())))
    return tuple(made)


def _from(items: list[np.ndarray], first: int) -> list[np.ndarray]:
    at = first % len(items)
    return items[at:] + items[:at]


@cache
def accumulators(layout: Layout) -> tuple[bytes, ...]:
    """Sums to add to: none, of some, and so many that no more than one of weight 1 and value 1 fits."""
    some, full = Accumulator(layout), Accumulator(layout)
    normal, constant = vectors(layout.size)[0], np.ones(layout.size, np.float32)
    for weight in (0.3, 5, 2.0**-20):
        some.add_vector(normal, weight)
    for _ in range(2047):
        full.add_vector(constant, 2.0**20)
    full.add_vector(constant, 2.0**20 - 1)
    return Accumulator(layout).to_bytes(), some.to_bytes(), full.to_bytes()
