"""The codec of IEEE half precision. Depends on one run of values; does not know packets."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fedq.codec.codec import OPTIONS_BYTES, Stream
from fedq.codec.finite import check_finite, first_nonfinite
from fedq.codec.malformed import MalformedUpdate

LARGEST = 65504.0  # the largest finite float16


@dataclass(frozen=True)
class Float16:
    """Nearest float16, ties to even: the error is at most 2^-11 of the value, or 2^-25 below 2^-14."""

    error_feedback: bool = False

    name: ClassVar[str] = "float16"
    wire_id: ClassVar[int] = 2
    entropy: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = False

    def options(self) -> bytes:
        # The decoder needs no options: error feedback happens before encoding.
        return bytes(OPTIONS_BYTES)

    @classmethod
    def from_options(cls, options: bytes) -> Self:
        if options != bytes(OPTIONS_BYTES):
            raise ValueError(f"options={options.hex()}: float16 has none; must be zeros")
        return cls()

    def num_scales(self, num_values: int) -> int:
        return 0

    def num_level_bytes(self, num_values: int) -> int:
        return 2 * num_values

    def encode_run(
        self, values: NDArray[np.float32], scales: NDArray[np.float32], levels: NDArray[np.uint8], stream: Stream
    ) -> None:
        check_finite(values)
        too_large = np.abs(values) > LARGEST
        if too_large.any():
            at = int(too_large.argmax())
            raise ValueError(
                f"value {values[at]:g} at index {stream.first_index + at}: float16 holds at most {LARGEST:g}; "
                "use codec=int8 or codec=float32"
            )
        with np.errstate(under="ignore"):
            levels.view("<f2")[:] = values

    def decode_run(
        self, scales: NDArray[np.float32], levels: NDArray[np.uint8], values: NDArray[np.float32], stream: Stream
    ) -> None:
        halves = levels.view("<f2")
        if (at := first_nonfinite(halves)) is not None:
            raise MalformedUpdate("nonfinite", f"a float16 value is {halves[at]}; encode never writes it")
        values[:] = halves
