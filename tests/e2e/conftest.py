import sys
import textwrap

import pytest

MODULE = """
    import numpy as np
    import torch
    from torch import nn

    class Net(nn.Sequential):
        def __init__(self, width=8):
            super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    class Fragile(Net):
        # Fails on the shard of client 1, which alone holds a pixel of 9.
        def forward(self, x):
            if self.training and bool((x == 9).any()):
                raise RuntimeError("cannot read /home/alice/scan-4711.png: value 9")
            return super().forward(x)

    class Mixing(Net):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    class Frozen(Net):
        # Keeps what it saw of the data in a parameter that is not trained.
        def __init__(self):
            super().__init__()
            self.largest = nn.Parameter(torch.zeros(1), requires_grad=False)

        def forward(self, x):
            if self.training:
                with torch.no_grad():
                    self.largest.copy_(torch.maximum(self.largest, x.max().reshape(1)))
            return super().forward(x)

    class Dropping(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    class Peek(Net):
        # Fails where it meets a full white pixel: whether it does is private.
        def forward(self, x):
            if self.training and x.shape[0] > 2 and bool((x[:, 0, 3, 3] == 1).any()):
                raise RuntimeError("seen")
            return super().forward(x)

    def digits(examples=240):
        from sklearn.datasets import load_digits
        x, y = load_digits(return_X_y=True)
        x = (x / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        return (x[:examples], y[:examples]), (x[1400:], y[1400:])

    def public(examples=240):
        from dataclasses import replace
        from fedq.data import as_dataset
        return replace(as_dataset(digits(examples), "mine.public"), fitted_on_private_data=False)

    def marked(examples=240, clients=4):
        from fedq.data import PARTITIONERS
        from fedq.core.randomness import generator
        (x, y), test = digits(examples)
        x = x.copy()
        shards = PARTITIONERS["iid"]()(y, None, clients=clients, rng=generator(0, "partition"))
        x[shards[1][0], 0, 0, 0] = 9
        return (x, y), test

    def line(n=300):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(n, 5)).astype(np.float32)
        y = (x @ np.array([[1.0], [-2.0], [0.5], [0.0], [3.0]], np.float32) + 0.1).astype(np.float32)
        return (x[:200], y[:200]), (x[200:], y[200:])

    def tags(n=400):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(n, 6)).astype(np.float32)
        y = (x[:, :3] + x[:, 3:] > 0).astype(np.float32)
        return (x[:300], y[:300]), (x[300:], y[300:])

    def no_test():
        return digits()[0]
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A user's own folder with a module `mine`, from which fedq is started."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def terminal_elsewhere(tmp_path, monkeypatch):
    """A terminal of 100 columns in a folder of its own; what a command puts on the import path is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
