"""The codec interface: one run of values <-> float32 scales and level bytes. Does not know headers or checksums."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

OPTIONS_BYTES = 8


@dataclass(frozen=True)
class Stream:
    """The position of a run in the vector, and the keys of its random numbers.

    `key` (0..2^64-1) is for rounding and stays with the encoder. `seed` (0..2^32-1) is for rotation or for the choice
    of values, and is sent in the header.
    """

    first_index: int
    seed: int
    key: int = 0
    num_values: int = 0  # of the whole vector: decides whether compiled kernels are worth loading

    def at(self, offset: int) -> "Stream":
        """The stream of the values of this run that start at `offset`."""
        return Stream(self.first_index + offset, self.seed, self.key, self.num_values)


class Codec(Protocol):
    """The interface of a codec, a frozen dataclass of options; a new codec is one file and one line in CODECS.

    A run of n values becomes `num_scales(n)` float32 values (block scales, or the values themselves) and
    `num_level_bytes(n)` bytes. Both counts depend only on n and the options. A packet holds all scales first,
    then all levels, so that the floats stay aligned for any number of levels.
    """

    name: ClassVar[str]
    wire_id: ClassVar[int]

    @property
    def error_feedback(self) -> bool:
        """Whether the quantization error is added to the next update (error feedback)."""
        ...

    @property
    def entropy(self) -> bool:
        """Whether the levels of the whole packet are deflated."""
        ...

    @property
    def uses_seed(self) -> bool:
        """Whether the decoder needs the seed."""
        ...

    def options(self) -> bytes:
        """The options as 8 bytes for the header."""
        ...

    @classmethod
    def from_options(cls, options: bytes) -> Self:
        """Read 8 header bytes; ValueError for bytes that this codec never writes."""
        ...

    def num_scales(self, num_values: int) -> int:
        """Number of float32 values (scales) for a run."""
        ...

    def num_level_bytes(self, num_values: int) -> int:
        """Number of level bytes for a run, before they are deflated."""
        ...

    def encode_run(
        self, values: NDArray[np.float32], scales: NDArray[np.float32], levels: NDArray[np.uint8], stream: Stream
    ) -> None:
        """Encode `values` (float32, shape (n,)) into `scales` and `levels`, in place.

        NonFiniteError for NaN or infinity, another ValueError for a value that the codec cannot represent.
        """
        ...

    def decode_run(
        self, scales: NDArray[np.float32], levels: NDArray[np.uint8], values: NDArray[np.float32], stream: Stream
    ) -> None:
        """Decode `scales` and `levels` into finite `values`, in place; MalformedUpdate for what encode never writes."""
        ...
