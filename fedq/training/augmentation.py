"""Augmented copies (views) of each image: flipped and shifted. Depends on tensors; not on training or privacy.

For augmentation multiplicity (De et al. 2022, arXiv:2204.13650): DP-SGD averages the gradients of an example's views
before it clips. So the views cost no epsilon. The transformations are public.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedq.core.choices import AUGMENTATIONS

_SHIFT = 2  # pixels, to each side


@dataclass(frozen=True)
class Views:
    """`count` views of each image, the first one unchanged; `kinds` are names in `AUGMENTATIONS`."""

    count: int
    kinds: tuple[str, ...] = AUGMENTATIONS

    def of(self, images: Tensor, uniform: Callable[[tuple[int, ...]], np.ndarray]) -> Tensor:
        """The views, shape (n * count, c, h, w), of images (n, c, h, w); the views of one image are adjacent.

        `uniform` draws numbers from 0 to 1, three for each view. A shift repeats the border; images are flipped left to
        right with probability 1/2.
        """
        n, _, height, width = images.shape
        drawn = torch.from_numpy(np.ascontiguousarray(uniform((n, self.count, 3))))
        drawn[:, 0] = 0.5  # neither flipped nor shifted
        mirrored, down, right = drawn.flatten(0, 1).unbind(1)
        span = 2 * _SHIFT + 1 if "shift" in self.kinds else 1
        rows = _places(height, (down * span).floor().long() - span // 2)
        columns = _places(width, (right * span).floor().long() - span // 2)
        if "flip" in self.kinds:
            columns = torch.where((mirrored > 0.5)[:, None], columns.flip(1), columns)
        example = torch.arange(n).repeat_interleave(self.count)[:, None, None]
        return images[example, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _places(side: int, shifts: Tensor) -> Tensor:
    """The source pixel of each position of each shifted view, shape (views, side)."""
    return (torch.arange(side) - shifts[:, None]).clamp(0, side - 1)
