"""What every peer of the benchmark `job` shares: the work, the data and the network. Depends on numpy and torch alone.

A peer is a program: `python PEER.py PLAN [options]`. PLAN is an .npz file made by fedq, with who trains in which round
on which examples. The last JSON line of its output has the accuracy on the test images, the number of local steps, and
the time at which the first round began.
"""

import gzip
import json
import struct
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROUNDS, COHORT, BATCH, LR = 10, 10, 32, 0.1
CLIP, NOISE = 1.0, 1.0  # of the jobs under DP
FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.2860, 0.3530


class Plan:
    """`shards`: client -> indices of training examples; `cohorts`: round -> clients."""

    def __init__(self, path: str) -> None:
        with np.load(path) as held:
            self.shards = [held[f"shard{i}"] for i in range(int(held["clients"]))]
            self.cohorts = held["cohorts"].tolist()
            self.train = held["train"]  # indices of the training part among all training images


def split(prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, float32 (n, 1, 28, 28), and labels, int64 (n,), of `train` or `t10k`."""
    images = _idx(f"{prefix}-images-idx3-ubyte").astype(np.float32)[:, None]
    images /= 255
    images -= MEAN
    images /= STD
    return torch.from_numpy(images), torch.from_numpy(_idx(f"{prefix}-labels-idx1-ubyte").astype(np.int64))


def training(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """The training part of the images, by whose indices shards are given."""
    images, labels = split("train")
    return images[torch.from_numpy(plan.train)], labels[torch.from_numpy(plan.train)]


def network() -> nn.Sequential:
    """The tanh CNN of Papernot et al. 2021: fedq's model `cnn`. channels_last, which halves its time on CPUs."""
    torch.manual_seed(0)
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
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int = 250) -> float:
    """Share of right answers."""
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(images[i : i + batch]).argmax(1) == labels[i : i + batch]).sum())
            for i in range(0, len(images), batch)
        )
    return right / len(images)


_began: list[float] = []


def first_round() -> None:
    """Note the time when the first round begins; later calls do nothing."""
    if not _began:
        _began.append(time.time())


def report(accuracy: float, steps: int) -> None:
    """The last line of a peer's output."""
    print(json.dumps({"accuracy": accuracy, "steps": steps, "first_round": _began[0]}), flush=True)


def _idx(name: str) -> np.ndarray:
    path = FOLDER / f"{name}.gz"
    data = gzip.decompress(path.read_bytes()) if path.exists() else (FOLDER / name).read_bytes()
    axes = data[3]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(
        struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    )
