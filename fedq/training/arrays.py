"""Convert an `nn.Module` to the flat float32 vector of a `Layout` and back. Depends on torch; not on packets."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from fedq.codec import Layout, Segment
from fedq.codec.layout import Role


def layout_of(model: nn.Module) -> Layout:
    """One segment for each array of the state, in the model's own order.

    Trained float parameters and float buffers are averaged. Frozen parameters have role `frozen`: they are named by a
    digest of their content and never sent. Integer buffers (counters) stay local. Float buffers are sent as float32
    with every codec: a running variance that is rounded below zero makes every output NaN.
    """
    trained = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    segments = []
    for name, tensor in _state(model):
        role: Role
        role = "averaged" if trained.get(name, True) else "frozen"
        if not tensor.is_floating_point():
            role = "local"
        content = hashlib.blake2b(_numpy(tensor).tobytes(), digest_size=16).digest() if role == "frozen" else b""
        dtype = str(tensor.dtype).removeprefix("torch.")
        hint = "float32" if role == "averaged" and name not in trained else None
        segments.append(Segment(name, tuple(tensor.shape), dtype, role, hint, content))
    return Layout(segments)


def read_vector(model: nn.Module, layout: Layout) -> np.ndarray:
    """The averaged values of the model, float32, shape (layout.size,)."""
    state = dict(_state(model))
    return layout.flatten({s.name: _numpy(state[s.name].float()) for s in layout.segments if s.role == "averaged"})


def load_vector(model: nn.Module, layout: Layout, vector: np.ndarray) -> None:
    """Write the vector (float32, shape (layout.size,)) into the model, in place; its other arrays do not change."""
    state = dict(_state(model))
    with torch.no_grad():
        for name, array in layout.unflatten(vector).items():
            state[name].copy_(torch.from_numpy(np.ascontiguousarray(array)))


def state_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """A copy of every array of the model's state; a tied weight appears once."""
    return {name: _numpy(tensor).copy() for name, tensor in _state(model)}


def _state(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and storage of each array; a tied weight appears once, under its first name."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy()
