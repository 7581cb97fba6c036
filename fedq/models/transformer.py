"""A small transformer encoder over the patches of an image. Depends on shapes only."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedq.models.shapes import check_images, check_shapes

_PATCHES = 4  # number of patches along each side


class EncoderBlock(nn.Module):
    """Attention and a feed-forward network, each after a LayerNorm, with skip connections (Xiong et al. 2020)."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.relu = nn.ReLU()
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.narrow(self.relu(self.widen(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """16 patches of an image through encoder blocks; the output is computed from the mean over patches."""

    places: Tensor

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, *, width: int = 64, heads: int = 4, depth: int = 2
    ) -> None:
        super().__init__()
        channels, height, image_width = input_shape
        self.patch = nn.Linear(channels * height * image_width // _PATCHES**2, width)
        self.position = nn.Embedding(_PATCHES**2, width)
        self.register_buffer("places", torch.arange(_PATCHES**2), persistent=False)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads=heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        cells = x.reshape(n, c, _PATCHES, h // _PATCHES, _PATCHES, w // _PATCHES)
        patches = cells.permute(0, 2, 4, 1, 3, 5).reshape(n, _PATCHES**2, -1)
        # One row of position values for each example, since per-example gradients need a batch axis.
        places = torch.zeros_like(patches[..., 0], dtype=torch.long) + self.places
        tokens = self.patch(patches) + self.position(places)
        out: Tensor = self.output(self.norm(self.blocks(tokens)).mean(1))
        return out


def transformer(
    input_shape: Sequence[int], num_outputs: int, *, width: int = 64, heads: int = 4, depth: int = 2
) -> nn.Module:
    """Encoder blocks over 4x4 patches (Dosovitskiy et al. 2021): 71,946 parameters on 28x28x1, 10 classes."""
    check_shapes(input_shape, num_outputs)
    _, height, image_width = check_images("transformer", input_shape, least=4)
    if height % _PATCHES or image_width % _PATCHES:
        raise ValueError(
            f"model=transformer cuts images into 4x4 patches, and {height}x{image_width} pixels do not divide by 4; "
            "pad the images, or use model=cnn"
        )
    if min(width, heads, depth) < 1 or width % heads:
        raise ValueError(f"model.width={width}: must be a positive multiple of model.heads={heads}; try 64 and 4")
    return Transformer(input_shape, num_outputs, width=width, heads=heads, depth=depth)
