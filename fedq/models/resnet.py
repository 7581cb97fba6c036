"""A residual network without batch statistics, for DP. Depends on shapes only."""

from collections.abc import Sequence

from torch import Tensor, nn

from fedq.models.shapes import check_images, check_shapes

_WIDTHS = (16, 32, 64)
_GROUPS = 8  # groups of channels in GroupNorm


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection; a 1x1 convolution on it if the shape changes."""

    def __init__(self, before: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(_GROUPS, width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, width)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if before != width or stride != 1:
            self.shortcut = nn.Conv2d(before, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


def resnet8_gn(input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """ResNet-8 (He et al. 2016, section 4.2, n = 1) with GroupNorm: 77,562 parameters on 28x28x1 and 10 classes."""
    check_shapes(input_shape, num_outputs)
    channels = check_images("resnet8_gn", input_shape, least=4)[0]
    return nn.Sequential(
        nn.Conv2d(channels, _WIDTHS[0], 3, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, _WIDTHS[0]),
        nn.ReLU(),
        ResidualBlock(_WIDTHS[0], _WIDTHS[0], stride=1),
        ResidualBlock(_WIDTHS[0], _WIDTHS[1], stride=2),
        ResidualBlock(_WIDTHS[1], _WIDTHS[2], stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(_WIDTHS[2], num_outputs),
    )
