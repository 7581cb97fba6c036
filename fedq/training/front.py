"""The first layers of a model, where nothing trains them: what they make of a shard is computed once. Knows torch.

Not quantization, privacy or rounds: layers that are fixed and look at one example each are so under all of them.
"""

from collections import OrderedDict
from typing import cast

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from fedq.privacy import refuse_mixing
from fedq.privacy.suitable import device_of
from fedq.seeding import seeded

_AT_ONCE = 100  # examples: the maps of more do not fit a processor's cache
_MOST_BYTES = 2 * 2**30  # of outputs that are kept; what comes later is computed each time


class Front:
    """Leading layers without anything that is trained, and their outputs for inputs that come again.

    Inputs are known by a digest of their values, so it does not matter who holds them or whether they were copied.
    """

    def __init__(self, layers: nn.Sequential, input_shape: tuple[int, ...]) -> None:
        self.layers = layers
        self._kept: dict[bytes, np.ndarray] = {}
        self._bytes_each = self._computed(np.zeros((1, *input_shape), np.float32)).nbytes

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs float32 (n, ...) of inputs float32 (n, ...), not to be written to."""
        key = xxhash.xxh3_128_digest(inputs.tobytes()) + repr(inputs.shape).encode()
        outputs = self._kept.get(key)
        if outputs is None:
            outputs = self._computed(inputs)
            if outputs.nbytes + sum(kept.nbytes for kept in self._kept.values()) <= _MOST_BYTES:
                self._kept[key] = outputs
        return outputs

    def kept_bytes(self, examples: int) -> int:
        """Memory that the outputs of so many different examples take, once all of them were seen."""
        return min(examples * self._bytes_each, _MOST_BYTES)

    def _computed(self, inputs: np.ndarray) -> np.ndarray:
        device = device_of(self.layers)
        self.layers.eval()
        with torch.inference_mode():
            some = max(min(_AT_ONCE, len(inputs)), 1)  # of no examples too, for the shape
            outputs: np.ndarray | None = None
            for start in range(0, max(len(inputs), 1), some):
                part = self.layers(torch.from_numpy(inputs[start : start + some]).to(device)).cpu().numpy()
                if outputs is None:
                    outputs = np.empty((len(inputs), *part.shape[1:]), np.float32)
                outputs[start : start + some] = part
        return cast(np.ndarray, outputs)


def divided(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[Front | None, nn.Module]:
    """The front of a plain sequence and the rest of it, which share its modules; or None and the model as it is.

    A front that holds no weights is none: computing it again is cheaper than keeping what it made. Neither is one whose
    output for an example turns on chance, on the mode or on the example's neighbours; it is probed for that.
    """
    if type(model) is not nn.Sequential:
        return None, model
    layers = list(model.named_children())
    leading = 0
    while leading < len(layers) and _fixed(layers[leading][1]):
        leading += 1
    front, rest = (nn.Sequential(OrderedDict(part)) for part in (layers[:leading], layers[leading:]))
    if not layers[leading:] or not any(True for _ in front.parameters()) or not _settled(front, input_shape):
        return None, model
    return Front(front, input_shape), rest


def _fixed(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters()) and not any(True for _ in module.buffers())


def _settled(layers: nn.Sequential, input_shape: tuple[int, ...]) -> bool:
    device = device_of(layers)
    probe = torch.randn((2, *input_shape), generator=torch.Generator().manual_seed(0)).to(device)
    found: list[Tensor] = []
    try:
        refuse_mixing(layers, input_shape)
    except ValueError:
        return False
    was_training = layers.training
    for training, seed in ((True, 0), (True, 1), (False, 0)):
        layers.train(training)
        with torch.no_grad(), seeded(seed, device):
            found.append(layers(probe))
    layers.train(was_training)
    return torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
