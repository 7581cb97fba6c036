"""What the privacy tests share: a tiny plan, a ledger of its own, two small models."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedq.privacy import DPPlan, Ledger, SpendContext


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def plan() -> DPPlan:
    return DPPlan(
        noise_multiplier=4.0,
        clip_norm=1.0,
        sample_rate=0.5,
        steps=2,
        nominal_examples=20,
        target_epsilon=8.0,
        delta=1e-5,
    )


@pytest.fixture
def context() -> SpendContext:
    return SpendContext(data="digits, client 3", run="demo-1", round=1)


@pytest.fixture
def tiny_mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.fixture
def tiny_cnn() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, 3),
    )


@pytest.fixture
def flat_examples():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(20, 6, generator=generator) * 3, torch.randint(0, 3, (20,), generator=generator)


@pytest.fixture
def image_examples():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(20, 1, 6, 6, generator=generator) * 3, torch.randint(0, 3, (20,), generator=generator)
