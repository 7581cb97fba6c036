"""A vector without its pruned values: their layout, there and back. Knows layouts and masks; not who prunes."""

from functools import cached_property

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedq.codec import mask as masks
from fedq.codec.layout import Layout, Segment

# No array of a model has such a name: torch's module names are not empty.
_NAME = ".kept"


class MaskedLayout:
    """What a mask leaves of a layout. Without a mask: everything, and nothing is copied.

    >>> mask = np.ones(256, bool)
    >>> mask[1:] = False
    >>> kept = MaskedLayout(Layout([Segment("w", (16, 16))]), mask)
    >>> kept.gather(np.arange(7, 263, dtype=np.float32)).tolist(), kept.layout.size
    ([7.0], 1)
    >>> kept.scatter(np.array([5], np.float32)).sum()
    np.float32(5.0)
    """

    def __init__(self, whole: Layout, mask: NDArray[np.bool_] | None = None) -> None:
        if mask is not None and (mask.dtype != bool or mask.shape != (whole.size,)):
            raise ValueError(f"mask of {mask.dtype} and shape {mask.shape}: must be bool of shape ({whole.size},)")
        self.whole = whole
        self.mask = None if mask is None or mask.all() else mask  # True: kept; None: all of them

    @cached_property
    def layout(self) -> Layout:
        """Each pruned segment flat, with as many values as are kept; a digest of the mask makes it no other's."""
        if self.mask is None:
            return self.whole
        mask, at = self.mask, 0
        segments: list[Segment] = []
        for segment in self.whole.segments:
            if segment.role == "averaged":
                kept = int(mask[at : at + segment.size].sum())
                at += segment.size
                if kept < segment.size:
                    segment = Segment(segment.name, (kept,), segment.dtype, hint=segment.hint)
            segments.append(segment)
        content = xxhash.xxh3_128(np.packbits(mask, bitorder="little").tobytes()).digest()
        return Layout([*segments, Segment(_NAME, (mask.size,), "bool", role="frozen", content=content)])

    def gather(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """The kept values of a whole vector, shape (layout.size,)."""
        return vector if self.mask is None else vector[self.mask]

    def scatter(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The whole vector of these kept values; what is pruned is 0.0."""
        if self.mask is None:
            return values
        vector = np.zeros(self.whole.size, np.float32)
        vector[self.mask] = values
        return vector

    def packet(self, round: int) -> bytes:
        """The bytes that tell the mask; b"" where nothing is pruned."""
        return b"" if self.mask is None else masks.write(self.mask, self.whole, round=round)

    @classmethod
    def from_packet(cls, data: bytes, whole: Layout, *, round: int) -> "MaskedLayout":
        """What `packet` was made of; MalformedUpdate for any other bytes."""
        return cls(whole, masks.read(data, whole, round=round) if data else None)
