"""What a codec is: one run of values <-> float32 sides and level bytes. Knows no header or checksum."""

from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

OPTIONS_BYTES = 8


class Codec(Protocol):
    """A frozen dataclass of options with these members; adding one is one file and one line in CODECS.

    A run of n values becomes `num_sides(n)` float32 values (scales, or the values themselves) and
    `num_level_bytes(n)` bytes: counts that depend on n and the options only. A packet holds all sides first,
    then all levels, so that floats stay aligned whatever the number of levels before them.
    """

    name: ClassVar[str]
    wire_id: ClassVar[int]

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
        """Bytes of levels."""
        ...

    def encode_run(
        self,
        values: NDArray[np.float32],
        sides: NDArray[np.float32],
        levels: NDArray[np.uint8],
        *,
        first_index: int,
        key: int,
    ) -> None:
        """Finite values -> `sides` and `levels`, in place. `first_index`: of values[0] in the vector.

        ValueError for a value that the codec cannot carry."""
        ...

    def decode_run(self, sides: NDArray[np.float32], levels: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
        """`sides` and `levels` -> finite `values`, in place; MalformedUpdate for what encode never writes."""
        ...
