"""What one round brought: exact sums, and what became of every client that was asked. Knows the codec; not Flower.

A worker process makes one for its share of the cohort, and `merge` of the shares is, to the bit, what one
process would have made of all: the sums are integers and the rest is sorted by name.
"""

import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedq.codec import Accumulator, Layout


@dataclass(frozen=True)
class Accepted:
    client: str
    weight: float
    loss: float | None = None
    metric: float | None = None
    right: int | None = None  # answers, with noise
    wrong: int | None = None


@dataclass(frozen=True)
class Rejected:
    client: str
    reason: str


@dataclass(frozen=True)
class Held:
    """Checked packets of one client that are aggregated once the round is complete."""

    client: str
    packets: Mapping[str, bytes]  # name -> packet
    weight: float
    reaches: Mapping[str, float]  # name -> what a bound compares: see `bounding`


@dataclass
class Traffic:
    """Bytes of serialized messages, of the same messages with the dense model in float32, and what the uplink held."""

    up: int = 0
    down: int = 0
    float32_up: int = 0
    float32_down: int = 0
    fields: list[str] = field(default_factory=list)  # "record.key" of everything that clients sent

    def add(self, other: "Traffic") -> None:
        self.up += other.up
        self.down += other.down
        self.float32_up += other.float32_up
        self.float32_down += other.float32_down
        self.fields = sorted({*self.fields, *other.fields})


@dataclass
class RoundAggregate:
    """The state that `fold` adds to and `finish` closes."""

    layout: Layout
    sums: dict[str, Accumulator] = field(default_factory=dict)
    accepted: list[Accepted] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    clip_norm: float | None = None  # L2 norm to which updates were clipped; None: they were not, or there were none
    within: int = 0  # updates that were no longer than that
    held: list[Held] = field(default_factory=list)  # of accepted clients, until `settle`
    aggregates: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # packet name -> aggregate of all updates
    # Packet name -> (client, reach) of each packet, before it was shortened.
    reaches: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    clipped: list[str] = field(default_factory=list)  # clients whose update was shortened
    capped: list[str] = field(default_factory=list)  # clients whose claimed weight was too large

    def note_reaches(self, client: str, reaches: Mapping[str, float], limits: Mapping[str, float]) -> None:
        """Of packets that were aggregated under these limits."""
        for name, reach in reaches.items():
            self.reaches.setdefault(name, []).append((client, reach))
        if any(reach > limits[name] for name, reach in reaches.items()):
            self.clipped = sorted([*self.clipped, client])

    def reject(self, rejected: Rejected) -> None:
        """Take back a client that was accepted, for a reason that only the whole round shows."""
        self.accepted = [a for a in self.accepted if a.client != rejected.client]
        self.rejected = sorted([*self.rejected, rejected], key=lambda r: (r.client, r.reason))

    def note_clip(self, clip_norm: float | None, within: int) -> None:
        """Of updates that were added; RuntimeError where others were clipped to another norm."""
        if clip_norm is None:
            return
        if self.clip_norm not in (None, clip_norm):
            raise RuntimeError(f"updates clipped to {self.clip_norm} and to {clip_norm} in one sum")
        self.clip_norm, self.within = clip_norm, self.within + within

    @property
    def reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(r.reason for r in self.rejected).items()))

    def mean(self, name: str) -> float | None:
        """Mean `loss` or `metric`, weighted as the updates are; None under DP, where clients keep them."""
        told = [(a.weight, value) for a in self.accepted if (value := getattr(a, name)) is not None]
        weights = sum(weight for weight, _ in told)
        return sum(weight * value for weight, value in told) / weights if weights else None

    def noisy_counts(self) -> tuple[int, int, int]:
        """(right, wrong, clients): sums of what the clients counted, each with its own noise."""
        told = [(a.right, a.wrong) for a in self.accepted if a.right is not None and a.wrong is not None]
        return sum(right for right, _ in told), sum(wrong for _, wrong in told), len(told)

    def merge(self, other: "RoundAggregate") -> None:
        """Add what another share of the cohort brought; `other` stays as it is."""
        for name, total in other.sums.items():
            self.sums.setdefault(name, Accumulator(self.layout)).merge(total)
        self.accepted = sorted([*self.accepted, *other.accepted], key=lambda a: a.client)
        self.rejected = sorted([*self.rejected, *other.rejected], key=lambda r: (r.client, r.reason))
        self.traffic.add(other.traffic)
        self.note_clip(other.clip_norm, other.within)
        self.held = sorted([*self.held, *other.held], key=lambda held: held.client)
        for name, reaches in other.reaches.items():
            self.reaches[name] = sorted([*self.reaches.get(name, []), *reaches])
        self.clipped = sorted([*self.clipped, *other.clipped])
        self.capped = sorted([*self.capped, *other.capped])

    def to_bytes(self) -> bytes:
        """All of it but `aggregates`, which are made where all shares are."""
        sums = {name: total.to_bytes() for name, total in sorted(self.sums.items())}
        held = [(one, name, data) for one in self.held for name, data in sorted(one.packets.items())]
        head = json.dumps(
            {
                "accepted": [asdict(a) for a in self.accepted],
                "rejected": [asdict(r) for r in self.rejected],
                "traffic": asdict(self.traffic),
                "clip": [self.clip_norm, self.within],
                "sums": [[name, len(data)] for name, data in sums.items()],
                "held": [[one.client, one.weight, one.reaches, name, len(data)] for one, name, data in held],
                "reaches": self.reaches,
                "clipped": self.clipped,
                "capped": self.capped,
            }
        ).encode()
        return b"".join([struct.pack("<I", len(head)), head, *sums.values(), *(data for _, _, data in held)])

    @classmethod
    def from_bytes(cls, data: bytes, layout: Layout) -> "RoundAggregate":
        (length,) = struct.unpack_from("<I", data)
        head = json.loads(data[4 : 4 + length])
        sums, at = {}, 4 + length
        for name, size in head["sums"]:
            sums[name] = Accumulator.from_bytes(data[at : at + size], layout)
            at += size
        held: dict[str, Held] = {}
        for client, weight, reaches, name, size in head["held"]:
            packets = held[client].packets if client in held else {}
            held[client] = Held(client, {**packets, name: data[at : at + size]}, weight, reaches)
            at += size
        return cls(
            layout,
            sums,
            [Accepted(**a) for a in head["accepted"]],
            [Rejected(**r) for r in head["rejected"]],
            Traffic(**head["traffic"]),
            clip_norm=head["clip"][0],
            within=head["clip"][1],
            held=list(held.values()),
            reaches={name: [(client, reach) for client, reach in found] for name, found in head["reaches"].items()},
            clipped=head["clipped"],
            capped=head["capped"],
        )
