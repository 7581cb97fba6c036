"""Map a vector to the vector without its pruned values and back. Depends on layouts and masks; not on who prunes."""

from functools import cached_property

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedq.codec import mask as masks
from fedq.codec.layout import Layout, Segment

# No array of a model has this name: torch's module names are not empty.
_NAME = ".kept"


class MaskedLayout:
    """A layout without the values that a mask prunes. Without a mask it is the whole layout, and nothing is copied.

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
        self.mask = None if mask is None or mask.all() else mask  # True: not pruned; None: nothing is pruned

    @cached_property
    def layout(self) -> Layout:
        """The layout of the remaining values: pruned segments are flat; a frozen segment has a digest of the mask."""
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
        """The remaining values of a whole vector, float32, shape (layout.size,)."""
        return vector if self.mask is None else vector[self.mask]

    def scatter(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The whole vector of these remaining values; pruned values are 0.0."""
        if self.mask is None:
            return values
        vector = np.zeros(self.whole.size, np.float32)
        vector[self.mask] = values
        return vector

    def packet(self, round: int) -> bytes:
        """The mask as bytes; b"" if nothing is pruned."""
        return b"" if self.mask is None else masks.write(self.mask, self.whole, round=round)

    @classmethod
    def from_packet(cls, data: bytes, whole: Layout, *, round: int) -> "MaskedLayout":
        """Read the bytes of `packet`; MalformedUpdate for any other bytes."""
        return cls(whole, masks.read(data, whole, round=round) if data else None)
