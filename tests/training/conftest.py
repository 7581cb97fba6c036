"""A few examples of hand-made classes, and small models for them."""

import numpy as np
import pytest
import torch
from torch import nn

from fedq.data import Examples
from fedq.quant import quantize


@pytest.fixture
def images() -> Examples:
    random = np.random.default_rng(3)
    inputs = random.normal(size=(50, 1, 6, 6)).astype(np.float32)
    return Examples(inputs, (inputs[:, 0, :3].sum((1, 2)) > 0).astype(np.int64))


@pytest.fixture
def float_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))


@pytest.fixture
def quantized_cnn(float_cnn) -> nn.Module:
    quantize(float_cnn)
    return float_cnn
