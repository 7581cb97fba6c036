"""Real clients on real data, small."""

import pytest

from fedq.experiment import build
from tests.quick import compose


@pytest.fixture(scope="session")
def digits():
    """Loaded once: the data of every experiment here."""
    from fedq.data import digits

    return digits()


@pytest.fixture
def experiment(digits):
    """digits on 6 clients of different sizes, with what a test wants to be different."""

    def make(*overrides):
        usual = ["clients=6", "partition=dirichlet", "model.hidden=[16]", "train.batch_size=64", "train.epochs=0.5"]
        return build(compose([*usual, "quant=off", "privacy=off", *overrides]), data=digits)

    return make
