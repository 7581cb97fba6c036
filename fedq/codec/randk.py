"""Send values that a shared seed picks at random, so no index is sent. sparse.py encodes the values.

The values with the smallest random words are picked, where the word has the key seed + 3 * 2^32 and the value's index
in the vector. Of equal words the first ones are picked.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedq.codec.codec import Stream
from fedq.codec.finite import check_finite
from fedq.codec.rounding import random_words
from fedq.codec.sparse import Sparse, smallest


@dataclass(frozen=True)
class RandK(Sparse):
    """A random `fraction` of the values (arXiv:1809.07599), times n / k, so that the mean over seeds is the vector.

    With `error_feedback` the factor is left out: it would enlarge the error, and error feedback corrects the bias.
    """

    name: ClassVar[str] = "randk"
    wire_id: ClassVar[int] = 8
    uses_seed: ClassVar[bool] = True

    def encode_run(
        self, values: NDArray[np.float32], scales: NDArray[np.float32], levels: NDArray[np.uint8], stream: Stream
    ) -> None:
        check_finite(values)
        kept = values[self._indices(values.size, stream)]
        if not self.error_feedback:
            with np.errstate(over="ignore"):
                kept = kept * np.float32(values.size / kept.size)
            if not np.isfinite(kept).all():
                factor = values.size / kept.size
                raise ValueError(
                    f"a value times {factor:g} exceeds float32: use error_feedback=true or a larger fraction"
                )
        self._encode_kept(kept, scales, levels, stream)

    def decode_run(
        self, scales: NDArray[np.float32], levels: NDArray[np.uint8], values: NDArray[np.float32], stream: Stream
    ) -> None:
        indices = self._indices(values.size, stream)
        values[:] = 0
        values[indices] = self._decode_kept(scales, levels, indices.size, stream)

    def _indices(self, num_values: int, stream: Stream) -> NDArray[np.int64]:
        words = random_words(key=stream.seed + 3 * 2**32, first_index=stream.first_index, count=num_values)
        return smallest(words, self.num_kept(num_values))
