"""What every peer of the benchmark `job` shares: the work, the data and the network. Depends on numpy and torch alone.

A peer is a program: `python PEER.py PLAN [options]`. PLAN is an .npz file that fedq writes. It says which clients train
in which round, on which examples in which order, and from which weights. The last JSON line of a peer's output has the
accuracy on the test images after the last round, the number of local steps of all clients, and the time (seconds since
1970) at which the first round began.
"""

import gzip
import json
import struct
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

COHORT, BATCH, LR = 10, 32, 0.1
CLIP, NOISE = 1.0, 1.0  # of the job under DP
EVALUATION_BATCH = 250  # faster on CPUs than 1,000 or 10,000: the feature maps fit the cache
FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.2860, 0.3530


class Plan:
    """`shards`: client -> indices of training images, int64, in the order of training; `cohorts`: round -> clients.

    `initial`: the weights before the first round, float32, parameter after parameter. `private_steps`: the number of
    steps of a client under DP, each at the sampling rate 1 / private_steps.
    """

    def __init__(self, path: str) -> None:
        with np.load(path) as held:
            self.shards = [held[f"shard{i}"] for i in range(int(held["clients"]))]
            self.cohorts: list[list[int]] = held["cohorts"].tolist()
            self.initial = held["initial"]
            self.private_steps = int(held["private_steps"])


def split(prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, float32 (n, 1, 28, 28), and labels, int64 (n,), of `train` or `t10k`."""
    images = _idx(f"{prefix}-images-idx3-ubyte").astype(np.float32)[:, None]
    images /= 255
    images -= MEAN
    images /= STD
    return torch.from_numpy(images), torch.from_numpy(_idx(f"{prefix}-labels-idx1-ubyte").astype(np.int64))


def network(plan: Plan) -> nn.Sequential:
    """The tanh CNN of Papernot et al. 2021, fedq's model `cnn`, with the plan's weights.

    It is channels_last, which halves its time on CPUs.
    """
    model = nn.Sequential(
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
    with torch.no_grad():
        nn.utils.vector_to_parameters(torch.from_numpy(plan.initial), model.parameters())
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right answers, 0 to 1."""
    model.eval()
    with torch.inference_mode():
        parts = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    return right / len(images)


_began: list[float] = []


def first_round() -> None:
    """Note the time when the first round begins; later calls do nothing."""
    if not _began:
        _began.append(time.time())


def report(accuracy: float, steps: int) -> None:
    """Print the last line of a peer's output."""
    print(json.dumps({"accuracy": accuracy, "steps": steps, "first_round": _began[0]}), flush=True)


def _idx(name: str) -> np.ndarray:
    path = FOLDER / f"{name}.gz"
    data = gzip.decompress(path.read_bytes()) if path.exists() else (FOLDER / name).read_bytes()
    axes = data[3]
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
