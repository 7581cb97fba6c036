"""Codecs that send a fraction of the values as int8 and decode the rest as zero. Depends on one run; not on packets."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fedq.codec.codec import Stream
from fedq.codec.int8 import Int8
from fedq.codec.options import Options, Rounding, check_switches

LEAST_FRACTION = np.float32(1e-6)


@dataclass(frozen=True)
class Sparse:
    """Send `fraction` of each run's values, at least one, as int8 with these `block` and `rounding` options."""

    fraction: float = 0.01
    block: int | None = None
    rounding: Rounding | None = None
    error_feedback: bool = False
    entropy: bool = False

    name: ClassVar[str]
    wire_id: ClassVar[int]
    uses_seed: ClassVar[bool]

    def __post_init__(self) -> None:
        check_switches(error_feedback=self.error_feedback, entropy=self.entropy)
        number = isinstance(self.fraction, int | float) and not isinstance(self.fraction, bool)
        if not number or not 0 <= self.fraction <= 1 or np.float32(self.fraction) < LEAST_FRACTION:
            raise ValueError(f"codec.fraction={self.fraction!r}: must be a number 1e-06..1; try 0.01")
        # The value that the header holds, so that encoder and decoder get the same count.
        object.__setattr__(self, "fraction", float(np.float32(self.fraction)))
        values = Int8(self.block, self.rounding)
        object.__setattr__(self, "block", values.block)
        object.__setattr__(self, "rounding", values.rounding)

    def options(self) -> bytes:
        assert self.block is not None
        assert self.rounding is not None
        return Options(self.block, self.rounding, False, self.error_feedback, self.entropy, self.fraction).to_bytes()

    @classmethod
    def from_options(cls, options: bytes) -> Self:
        parsed = Options.from_bytes(options)
        if parsed.rotate:
            raise ValueError(f"options={options.hex()}: {cls.name} cannot rotate; use rotate=false")
        return cls(parsed.fraction, parsed.block, parsed.rounding, parsed.error_feedback, parsed.entropy)

    def num_kept(self, num_values: int) -> int:
        """Number of values of a run that are sent: fraction * num_values, rounded to nearest, at least 1."""
        return min(num_values, max(1, int(self.fraction * num_values + 0.5)))

    def num_scales(self, num_values: int) -> int:
        return self._values.num_scales(self.num_kept(num_values))

    def num_level_bytes(self, num_values: int) -> int:
        kept = self.num_kept(num_values)
        return self._index_bytes(num_values, kept) + kept

    @property
    def _values(self) -> Int8:
        """The codec of the sent values."""
        return Int8(self.block, self.rounding)

    def _index_bytes(self, num_values: int, num_kept: int) -> int:
        """Bytes of the indices, before the levels; 0 if both ends know the indices."""
        return 0

    def _encode_kept(
        self, kept: NDArray[np.float32], scales: NDArray[np.float32], levels: NDArray[np.uint8], stream: Stream
    ) -> None:
        # The random numbers of rounding belong to the position among the sent values of this run.
        self._values.encode_run(kept, scales, levels[levels.size - kept.size :], stream)

    def _decode_kept(
        self, scales: NDArray[np.float32], levels: NDArray[np.uint8], kept: int, stream: Stream
    ) -> NDArray[np.float32]:
        values = np.empty(kept, np.float32)
        self._values.decode_run(scales, levels[levels.size - kept :], values, stream)
        return values


def smallest(keys: NDArray[np.unsignedinteger], count: int) -> NDArray[np.int64]:
    """Indices of the `count` smallest keys, increasing; of equal keys the first ones."""
    if count == keys.size:
        return np.arange(count)
    bound = np.partition(keys, count - 1)[count - 1]
    chosen = keys < bound
    ties = np.flatnonzero(keys == bound)
    chosen[ties[: count - int(chosen.sum())]] = True
    return np.flatnonzero(chosen)
