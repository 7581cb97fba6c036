"""What clients are sent: the model in one packet, or the changes since what they hold. Knows the codec; not messages.

`weights`: one packet that stands alone, the same for all. `delta`: the server keeps what its clients hold, and sends
what is missing from it. What the last packet lost is part of what is missing now, so every delta is error feedback
(EF21, arXiv:2106.05203). A client that missed rounds gets the deltas since, or the held weights as float32 where
those are shorter; one whose state nobody knows gets the latter.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedq import codec as packets
from fedq.codec import Layout, MaskedLayout
from fedq.core.randomness import key64
from fedq.flower import wire

# Codecs under which weights by themselves are no model.
NO_WEIGHTS = ("topk", "randk", "sign")
# What changes begin from where their own codec is too coarse: half of int8's bytes, and the next changes fix it.
FIRST = packets.Int4(rotate=True)
# Of an uplink whose codec is too coarse for weights, or which was told nothing of the downlink.
FALLBACK = "int8"


@dataclass(frozen=True)
class Downlink:
    """How the model is sent. `kind="delta"` pays where a client takes part in most rounds."""

    codec: packets.Codec
    kind: packets.Kind = "weights"

    def __post_init__(self) -> None:
        if self.kind not in ("weights", "delta"):
            raise ValueError(f"downlink.kind={self.kind!r}: must be weights or delta")
        if self.kind == "weights" and self.codec.name in NO_WEIGHTS:
            raise ValueError(
                f"downlink.name={self.codec.name}: too coarse for weights, which would be no model any more; "
                "use downlink.kind=delta, or downlink.name=int8"
            )
        if self.kind == "weights" and self.codec.error_feedback:
            raise ValueError(
                "downlink.error_feedback=True: complete weights leave nothing to feed back; use downlink.kind=delta"
            )


def downlink_for(uplink: packets.Codec) -> Downlink:
    """The same codec both ways where it is fine enough for weights, else int8."""
    return Downlink(packets.fine_codec(uplink))


@dataclass(frozen=True)
class Broadcast:
    """The packets of one round, and what a client holds once it has read its own."""

    base: bytes  # digest of those weights
    whole: bytes = b""  # a packet of weights
    deltas: tuple[bytes, ...] = ()  # packets of changes, the newest last
    behind: Mapping[str, int] = field(default_factory=dict)  # client -> how many of the last deltas it needs
    mask: bytes = b""  # a packet that says which values `whole` holds; none: all
    beside: Mapping[str, bytes] = field(default_factory=dict)  # name -> packet of the algorithm, the same for all
    limits: Mapping[str, float] = field(default_factory=dict)  # see `Aggregation.limits`; told to no client

    def packets(self, client: str) -> dict[str, bytes]:
        """Name -> packet, for one client."""
        missing = self.behind.get(client, 0)
        model = wire.name_deltas(self.deltas[-missing:]) if missing else {wire.MODEL: self.whole, **self._masks}
        return {**model, **self.beside}

    def kept(self, layout: Layout, round: int) -> MaskedLayout:
        """What is sent of the model's layout, both ways, in the round that it was made for."""
        return MaskedLayout.from_packet(self.mask, layout, round=round)

    def head(self) -> dict[str, Any]:
        """All but the packets, as JSON takes it: for a worker process."""
        beside = list(self.beside)
        return {"base": self.base.hex(), "behind": dict(self.behind), "beside": beside, "limits": dict(self.limits)}

    def blobs(self) -> dict[str, bytes]:
        """The packets."""
        return {wire.MODEL: self.whole, **self._masks, **wire.name_deltas(self.deltas), **self.beside}

    @classmethod
    def from_frame(cls, head: Mapping[str, Any], blobs: Mapping[str, bytes]) -> "Broadcast":
        """What `head` and `blobs` were made of."""
        beside = {name: blobs[name] for name in head["beside"]}
        deltas = {n: packet for n, packet in blobs.items() if n not in (wire.MODEL, wire.MASK) and n not in beside}
        told = wire.model_of(deltas) if deltas else []
        assert isinstance(told, list)  # wire.MODEL was left out
        base, mask = bytes.fromhex(head["base"]), wire.mask_of(blobs)
        return cls(base, blobs[wire.MODEL], tuple(told), head["behind"], mask, beside, head["limits"])

    @property
    def _masks(self) -> dict[str, bytes]:
        return {wire.MASK: self.mask} if self.mask else {}


class Broadcaster:
    """Makes the broadcasts of one run."""

    def __init__(self, layout: packets.Layout, downlink: Downlink, *, seed: int) -> None:
        self._layout, self._downlink, self._seed = layout, downlink, seed
        fine = downlink.codec.name in packets.FINE
        self._first = packets.with_error_feedback(downlink.codec, False) if fine else FIRST
        self._held: np.ndarray | None = None  # what a client holds that has read the last broadcast
        self._since = 0  # round of what the first of `_deltas` is against
        self._deltas: list[tuple[int, bytes]] = []  # (round, packet), oldest first
        self._holds: dict[str, int] = {}  # client -> round of the broadcast that it has surely read last

    def make(
        self, master: np.ndarray, round: int, cohort: Sequence[str], kept: packets.MaskedLayout | None = None
    ) -> Broadcast:
        """The broadcast for these clients. ValueError where the codec cannot carry the model.

        `kept`: which values are sent, where weights are; changes are always sent of all.
        """
        if self._downlink.kind == "weights":
            return self.whole(master, round, kept)
        if self._held is None or not any(self._reaches(client) for client in self._holds):
            # Nobody holds anything to build on: begin anew, from weights that need not be exact.
            packet = self._packet(master, self._first, round, "weights")
            self._held, self._since, self._deltas = packets.decode(packet, self._layout), round, []
            return Broadcast(packets.digest(self._held), packet)
        base = packets.digest(self._held)
        delta = self._packet(master - self._held, self._downlink.codec, round, "delta", base)
        self._held = self._held + packets.decode(delta, self._layout)
        self._deltas.append((round, delta))
        self._forget()
        behind = {client: self._missed(client) for client in cohort if self._reaches(client)}
        everybody = len(behind) == len(cohort)
        whole = b"" if everybody else self._packet(self._held, packets.as_codec("float32"), round, "weights")
        return Broadcast(packets.digest(self._held), whole, tuple(packet for _, packet in self._deltas), behind)

    def whole(self, master: np.ndarray, round: int, kept: packets.MaskedLayout | None = None) -> Broadcast:
        """Weights that stand alone and change nothing here: to evaluate, or where all broadcasts are so."""
        alone = self._downlink.kind == "weights"
        codec = self._downlink.codec if alone else packets.as_codec(FALLBACK)
        kept = kept or packets.MaskedLayout(self._layout)
        packet = self._packet(kept.gather(master), codec, round, "weights", layout=kept.layout)
        return Broadcast(packets.digest(packets.decode(packet, kept.layout)), packet, mask=kept.packet(round))

    def beside(
        self, vectors: Mapping[str, np.ndarray], round: int, base: bytes, kept: packets.MaskedLayout | None = None
    ) -> dict[str, bytes]:
        """A packet of each vector of an algorithm, which goes to all clients beside the model of digest `base`."""
        kept, codec = kept or packets.MaskedLayout(self._layout), packets.fine_codec(self._downlink.codec)
        return {
            name: self._packet(kept.gather(vector), codec, round, "weights", base, kept.layout, name)
            for name, vector in vectors.items()
        }

    def note(self, round: int, asked: Iterable[str], answered: Iterable[str]) -> None:
        """Who answered, and so has read what was sent. What the others of those asked have read nobody knows."""
        for client in asked:
            self._holds.pop(client, None)
        self._holds.update(dict.fromkeys(answered, round))

    def _reaches(self, client: str) -> bool:
        """Whether the deltas that are kept lead on from what it holds."""
        return self._holds.get(client, -1) >= self._since

    def _missed(self, client: str) -> int:
        return sum(number > self._holds[client] for number, _ in self._deltas)

    def _forget(self) -> None:
        """Drop the oldest deltas where together they are longer than the weights themselves."""
        limit = packets.packed_size("float32", self._layout)
        while len(self._deltas) > 1 and sum(len(packet) for _, packet in self._deltas) > limit:
            self._since = self._deltas.pop(0)[0]

    def _packet(
        self,
        vector: np.ndarray,
        codec: packets.Codec,
        round: int,
        kind: packets.Kind,
        base: bytes = b"",
        layout: packets.Layout | None = None,
        name: str = "broadcast",
    ) -> bytes:
        layout, key = layout or self._layout, key64(self._seed, name, round)
        options: dict[str, Any] = {"layout": layout, "kind": kind, "round": round, "base": base, "key": key}
        try:
            return packets.encode(vector, codec, **options)
        except ValueError:  # float16 holds nothing beyond 65504: this packet is larger, and the run goes on
            return packets.encode(vector, "float32", **options)
