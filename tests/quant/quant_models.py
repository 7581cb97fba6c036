"""The small models that the quant tests are about, in plain torch."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def tanh_cnn() -> nn.Sequential:
    """Papernot et al. 2021, Table 1; for 1x28x28."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def relu_cnn() -> nn.Sequential:
    """Strides, groups, depthwise, no bias, pooling over ReLU; for 1x12x12."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding="same", groups=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 10),
    )


class Residual(nn.Module):
    """Functional ReLU, an addition, a float GroupNorm and a reshape that reads the batch size; for 1x8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.out = nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first(x))
        h = functional.relu(h + self.norm(self.second(h)))
        h = functional.max_pool2d(h, 2)
        return self.out(h.view(h.size(0), -1))


class Functional(nn.Module):
    """ReLUs as functions, one of them read by two layers; for 1x16x16."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.left, self.right = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.hidden, self.out = nn.Linear(4 * 25, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.max_pool2d(functional.relu(self.first(x)), 2)
        h = torch.flatten(self.left(h) + self.right(h), 1)
        return self.out(functional.relu(self.hidden(h)))


class Untraceable(nn.Module):
    """Its path depends on its data, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.out = nn.Linear(4 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if h.sum() > 0:
            h = torch.relu(h)
        return self.out(h.flatten(1))
