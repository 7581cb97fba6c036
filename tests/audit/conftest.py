"""A small client to audit, with or without a bug planted."""

import pytest
import torch
from torch import nn

from fedq.audit import Subject, workplace
from fedq.codec import Int8
from fedq.data import digits
from fedq.privacy import DPPlan, SecureRandom
from fedq.training import Recipe, Trainer, layout_of, read_vector
from fedq.training import trainer as training
from tests.audit.bugs import Observer

# Full batches, whose curve is known in closed form: an accountant's takes seconds.
PLAN = DPPlan(
    noise_multiplier=1.5,
    clip_norm=0.5,
    sample_rate=1.0,
    steps=2,
    nominal_examples=4,
    target_epsilon=8.0,
    delta=1e-5,
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def examples():
    return digits().train


@pytest.fixture
def folder():
    with workplace() as folder:
        yield folder


@pytest.fixture
def make_subject(folder, monkeypatch):
    """A subject with the given parts in place of fedq's own."""

    def make(*, mechanism=None, **parts):
        if mechanism is not None:
            monkeypatch.setattr(training, "DPSGD", mechanism)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), Observer(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
        layout = layout_of(model)
        trainer = Trainer(model, layout, Recipe(batch_size=8, optimizer="SGD", lr=0.1, rounds=1, steps=2))
        start = read_vector(model, layout)
        return Subject(PLAN, trainer, Int8(), start, SecureRandom, folder=folder, **parts)

    return make
