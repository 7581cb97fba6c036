"""Vectors to compress: the shapes of a ResNet-18, Gaussian values, and the update of one real epoch. Times nothing."""

import numpy as np
import torch

from fedq.codec import Layout, Segment
from fedq.data import digits
from fedq.models import mlp
from fedq.training import layout_of, read_vector


def resnet18() -> Layout:
    """The 62 tensors of a ResNet-18 for 3x32x32 images and 10 classes: 11,173,962 parameters."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("conv1", (64, 3, 3, 3)), *_norm("norm1", 64)]
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in (1, 2):
            name = f"stage{stage}.block{block}"
            before = channels if block == 1 else width
            shapes += [(f"{name}.conv1", (width, before, 3, 3)), *_norm(f"{name}.norm1", width)]
            shapes += [(f"{name}.conv2", (width, width, 3, 3)), *_norm(f"{name}.norm2", width)]
            if before != width:
                shapes += [(f"{name}.shortcut", (width, before, 1, 1)), *_norm(f"{name}.norm3", width)]
        channels = width
    return Layout(Segment(*shape) for shape in [*shapes, ("output.weight", (10, 512)), ("output.bias", (10,))])


def _norm(name: str, width: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


def gaussian(size: int, *, seed: int = 0) -> np.ndarray:
    """float32, standard normal."""
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def real_update() -> tuple[Layout, np.ndarray, np.ndarray]:
    """(layout, update, weights): what the fourth epoch changes in an mlp 64-512-512-10 on the digits. 2 seconds."""
    data = digits().train
    torch.manual_seed(0)
    model = mlp((1, 8, 8), 10, hidden=(512, 512))
    layout = layout_of(model)
    inputs, targets = torch.from_numpy(data.inputs), torch.from_numpy(data.targets).long()
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = read_vector(model, layout)
    for _ in range(4):
        before = read_vector(model, layout)
        for batch in torch.randperm(len(inputs), generator=order).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    after = read_vector(model, layout)
    return layout, after - before, after
