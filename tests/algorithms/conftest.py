"""A task without data: `fit` takes given steps on a quadratic loss, so every expected value is computed by hand."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from fedq.algorithms import Correction, State, Vector


@dataclass
class Quadratic:
    """A client whose loss is |w - target|^2 / 2: its gradient is w - target."""

    target: Vector
    weights: Vector
    received: State = field(default_factory=dict)
    lr: float = 0.1
    steps: int = 3
    sent: dict[str, Vector] = field(default_factory=dict)

    @property
    def step_size(self) -> float:
        return self.lr * self.steps

    def fit(self, correction: Correction | None = None) -> Vector:
        w = self.weights.copy()
        for _ in range(self.steps):
            gradient = w - self.target
            if correction is not None:
                gradient = gradient + correction(torch.from_numpy(w)).numpy()
            w = w - np.float32(self.lr) * gradient
        return w

    def send(self, name: str, vector: Vector) -> None:
        self.sent[name] = vector

    def decoded(self, name: str) -> Vector:
        return self.sent[name]


@pytest.fixture
def quadratic():
    def make(target=(1.0, -2.0), weights=(0.0, 0.0), **different):
        return Quadratic(np.float32(target), np.float32(weights), **different)

    return make
