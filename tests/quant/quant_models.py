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


class Tokens(nn.Module):
    """An embedding, an LSTM, and its last and its mean state; for (5,) of 20 token numbers."""

    def __init__(self, **options: bool | int) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True, **options)  # type: ignore[arg-type]
        self.output = nn.Linear(12 if options.get("bidirectional") else 6, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.words(x))
        return self.output(states[:, -1]) + self.output(states.mean(1))


class Tied(nn.Module):
    """torch's own encoder layer between an embedding and an output of the same weight; for (5,) of 20 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.output = nn.Linear(8, 20, bias=False)
        self.output.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.encoder(self.words(x)).mean(1))


class Across(nn.Module):
    """Attention of some tokens to all, with values of their own; for (4, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.output = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.attention(x[:, :2], x, x * 0.5)[0].mean(1))


class Series(nn.Module):
    """Conv1d: strides, groups, depthwise, padding that wraps; for (4, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)
        self.second = nn.Conv1d(6, 6, 3, padding="same", groups=6, padding_mode="circular")
        self.output = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(functional.relu(self.second(functional.relu(self.first(x)))).flatten(1))


TOKENS = (5,)  # the shape of token numbers, which are no floats


def example_inputs(shape: tuple[int, ...], batch: int) -> Tensor:
    return torch.randint(0, 20, (batch, *shape)) if shape == TOKENS else torch.randn(batch, *shape)
