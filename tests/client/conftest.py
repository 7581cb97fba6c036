"""A client on a few hand-made examples."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedq import codec
from fedq.client import Client, ClientState
from fedq.codec import Int8
from fedq.data import Examples
from fedq.flower import wire
from fedq.training import Recipe, Trainer, layout_of, read_vector


@pytest.fixture
def examples() -> Examples:
    random = np.random.default_rng(5)
    inputs = random.normal(size=(40, 30)).astype(np.float32)
    return Examples(inputs, (inputs[:, 0] > 0).astype(np.int64))


@pytest.fixture
def trainer() -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 2))
    return Trainer(model, layout_of(model), Recipe(batch_size=10, optimizer="SGD", lr=0.3, rounds=9, epochs=1))


@pytest.fixture
def start(trainer) -> np.ndarray:
    return read_vector(trainer.model, trainer.layout)


@pytest.fixture
def make_client(trainer, examples, tmp_path) -> Callable[..., Client]:
    def make(**different: Any) -> Client:
        usual: dict[str, Any] = {
            "identity": "3",
            "trainer": trainer,
            "codec": Int8(block=64, rounding="stochastic"),
            "shard": lambda: examples,
            "state": ClientState(tmp_path / "3"),
            "seed": 0,
        }
        return Client(**(usual | different))

    return make


@pytest.fixture
def ask(trainer, start) -> Callable[..., wire.Request]:
    """A request for a round: train from these weights. `header`: what its packet says otherwise than it should."""

    def ask(
        round: int,
        *,
        accepted: int = -1,
        weights: np.ndarray | None = None,
        header: Mapping[str, Any] | None = None,
        holdout: float = 0.0,
    ) -> wire.Request:
        usual = {"layout": trainer.layout, "kind": "weights", "round": round}
        packet = codec.encode(start if weights is None else weights, "float32", **(usual | dict(header or {})))
        return wire.Request(round, accepted, {"model": packet}, holdout)

    return ask
