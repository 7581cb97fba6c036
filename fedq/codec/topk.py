"""Send the values of largest magnitude and their indices. Depends on one run; sparse.py encodes the values.

The choice of indices reveals something about the data. Under DP the update is noised before it is packed, so the choice
is post-processing. Without DP an observer learns the indices as it learns the values.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedq.codec import elias_fano
from fedq.codec.codec import Stream
from fedq.codec.finite import check_finite
from fedq.codec.sparse import Sparse, smallest


@dataclass(frozen=True)
class TopK(Sparse):
    """The largest `fraction` of the values (arXiv:1809.07599): biased, so use error feedback (`error_feedback`)."""

    name: ClassVar[str] = "topk"
    wire_id: ClassVar[int] = 7
    uses_seed: ClassVar[bool] = False

    def encode_run(
        self, values: NDArray[np.float32], scales: NDArray[np.float32], levels: NDArray[np.uint8], stream: Stream
    ) -> None:
        check_finite(values)
        # The bits of floats order as their magnitudes do; the complement turns the largest into the smallest.
        order = ~(np.ascontiguousarray(values).view(np.uint32) & np.uint32(0x7FFFFFFF))
        indices = smallest(order, self.num_kept(values.size))
        elias_fano.write(indices, values.size, levels[: levels.size - indices.size])
        self._encode_kept(values[indices], scales, levels, stream)

    def decode_run(
        self, scales: NDArray[np.float32], levels: NDArray[np.uint8], values: NDArray[np.float32], stream: Stream
    ) -> None:
        kept = self.num_kept(values.size)
        indices = elias_fano.read(levels[: levels.size - kept], values.size, kept)
        values[:] = 0
        values[indices] = self._decode_kept(scales, levels, kept, stream)

    def _index_bytes(self, num_values: int, num_kept: int) -> int:
        return elias_fano.num_bytes(num_values, num_kept)
