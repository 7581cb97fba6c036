"""The codec that sends float32 values unchanged. Depends on one run of values; does not know packets."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fedq.codec.codec import OPTIONS_BYTES, Stream
from fedq.codec.finite import check_finite, first_nonfinite
from fedq.codec.malformed import MalformedUpdate


@dataclass(frozen=True)
class Float32:
    """Send every value bit for bit, 4 bytes each."""

    name: ClassVar[str] = "float32"
    wire_id: ClassVar[int] = 1
    error_feedback: ClassVar[bool] = False
    entropy: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = False

    def options(self) -> bytes:
        return bytes(OPTIONS_BYTES)

    @classmethod
    def from_options(cls, options: bytes) -> Self:
        if options != bytes(OPTIONS_BYTES):
            raise ValueError(f"options={options.hex()}: float32 has none; must be zeros")
        return cls()

    def num_scales(self, num_values: int) -> int:
        return num_values

    def num_level_bytes(self, num_values: int) -> int:
        return 0

    def encode_run(
        self, values: NDArray[np.float32], scales: NDArray[np.float32], levels: NDArray[np.uint8], stream: Stream
    ) -> None:
        check_finite(values)
        scales[:] = values

    def decode_run(
        self, scales: NDArray[np.float32], levels: NDArray[np.uint8], values: NDArray[np.float32], stream: Stream
    ) -> None:
        if (at := first_nonfinite(scales)) is not None:
            raise MalformedUpdate("nonfinite", f"a float32 value is {scales[at]}; encode never writes it")
        values[:] = scales
