"""What a codec is: one run of values <-> float32 sides and level bytes. Knows no header or checksum."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

OPTIONS_BYTES = 8


@dataclass(frozen=True)
class Stream:
    """Where a run stands in the vector, and what its random numbers are drawn from.

    `key` (0..2^64-1) rounds and stays with the encoder; `seed` (0..2^32-1) rotates or picks, and travels.
    """

    first_index: int
    seed: int
    key: int = 0
    num_values: int = 0  # of the whole vector: whether compiled kernels pay

    def at(self, offset: int) -> "Stream":
        """The stream of the values from `offset` of this run on."""
        return Stream(self.first_index + offset, self.seed, self.key, self.num_values)


class Codec(Protocol):
    """A frozen dataclass of options with these members; adding one is one file and one line in CODECS.

    A run of n values becomes `num_sides(n)` float32 values (scales, or the values themselves) and
    `num_level_bytes(n)` bytes: counts that depend on n and the options only. A packet holds all sides first,
    then all levels, so that floats stay aligned whatever the number of levels before them.
    """

    name: ClassVar[str]
    wire_id: ClassVar[int]

    @property
    def feedback(self) -> bool:
        """Whether what the codec loses is added to the next update."""
        ...

    @property
    def entropy(self) -> bool:
        """Whether the levels of the whole packet are deflated."""
        ...

    @property
    def uses_seed(self) -> bool:
        """Whether decoding needs the seed."""
        ...

    def options(self) -> bytes:
        """8 bytes for the header."""
        ...

    @classmethod
    def from_options(cls, options: bytes) -> Self:
        """From 8 header bytes; ValueError if they say nothing this codec could have written."""
        ...

    def num_sides(self, num_values: int) -> int:
        """float32 values beside the levels."""
        ...

    def num_level_bytes(self, num_values: int) -> int:
        """Bytes of levels, before they are deflated."""
        ...

    def encode_run(
        self, values: NDArray[np.float32], sides: NDArray[np.float32], levels: NDArray[np.uint8], stream: Stream
    ) -> None:
        """Values -> `sides` and `levels`, in place.

        NonFiniteError for NaN or infinity, another ValueError for a value that the codec cannot carry."""
        ...

    def decode_run(
        self, sides: NDArray[np.float32], levels: NDArray[np.uint8], values: NDArray[np.float32], stream: Stream
    ) -> None:
        """`sides` and `levels` -> finite `values`, in place; MalformedUpdate for what encode never writes."""
        ...
