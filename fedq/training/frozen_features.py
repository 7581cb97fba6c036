"""The output of a model's frozen leading layers, computed once per example (a feature cache). Depends on torch.

Does not know quantization, privacy or rounds: a frozen layer that treats each example alone is the same with all of
them.
"""

import math
from collections import OrderedDict

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from fedq.core.seeding import seeded
from fedq.privacy import refuse_mixing
from fedq.privacy.batch_invariance import aligned_products, microbatches
from fedq.privacy.model_validation import device_of

_AT_ONCE = 100  # examples per step: the feature maps of more do not fit into a processor's cache
_MOST_BYTES = 2 * 2**30  # maximum size of the cache; further outputs are computed each time


class FrozenFeatures:
    """Leading layers without trained parameters, and a cache of their outputs.

    Inputs are identified by a digest of their values, so copies are found too. They are computed in batches of one
    size, so that an example's outputs have the same bits beside any other examples.
    """

    def __init__(self, layers: nn.Sequential, input_shape: tuple[int, ...]) -> None:
        self.layers = layers
        self._kept: dict[bytes, np.ndarray] = {}
        self._output_shape = tuple(_outputs(layers, torch.zeros((_AT_ONCE, *input_shape))).shape[1:])

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs (float32, read-only, shape (n, ...)) for inputs (float32, shape (n, ...))."""
        key = xxhash.xxh3_128_digest(inputs.tobytes()) + repr(inputs.shape).encode()
        outputs = self._kept.get(key)
        if outputs is None:
            outputs = self._computed(inputs)
            if outputs.nbytes + sum(kept.nbytes for kept in self._kept.values()) <= _MOST_BYTES:
                self._kept[key] = outputs
        return outputs

    def kept_bytes(self, examples: int) -> int:
        """Bytes of the cache after the outputs of `examples` different examples were computed."""
        return min(examples * 4 * math.prod(self._output_shape), _MOST_BYTES)

    def _computed(self, inputs: np.ndarray) -> np.ndarray:
        outputs = np.empty((len(inputs), *self._output_shape), np.float32)
        all_of_them = torch.from_numpy(inputs)
        for rows, count in microbatches(np.arange(len(inputs)), _AT_ONCE):
            # Indexed by torch, whose memory is aligned: kernels may round otherwise at another address.
            part = _outputs(self.layers, all_of_them[torch.from_numpy(rows)])
            outputs[rows[:count]] = part[:count].numpy()
        return outputs


def divided(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[FrozenFeatures | None, nn.Module]:
    """The frozen leading layers of an `nn.Sequential` and the other layers; or None and the model itself.

    The modules are shared. Layers without weights alone are not split off: computing them again is cheaper than a
    cache. Neither are layers whose output for an example depends on random numbers, on the mode or on other examples,
    or whose last bits depend on the position in the batch; a probe tests this.
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
    return FrozenFeatures(front, input_shape), rest


def _fixed(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters()) and not any(True for _ in module.buffers())


def _settled(layers: nn.Sequential, input_shape: tuple[int, ...]) -> bool:
    device = device_of(layers)
    probe = torch.randn((_AT_ONCE, *input_shape), generator=torch.Generator().manual_seed(0))
    try:
        refuse_mixing(layers, input_shape)
    except ValueError:
        return False
    found: list[Tensor] = []
    was_training = layers.training
    for training, seed in ((True, 0), (True, 1), (False, 0)):
        layers.train(training)
        with seeded(seed, device):
            found.append(_outputs(layers, probe))
    layers.train(was_training)
    found += [_outputs(layers, probe.roll(1, 0)).roll(-1, 0), _outputs(layers, probe.flip(0)).flip(0)]
    return all(torch.equal(found[0], other) for other in found[1:])


def _outputs(layers: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs for `_AT_ONCE` inputs, on the CPU."""
    with torch.inference_mode(), aligned_products():
        outputs: Tensor = layers(inputs.to(device_of(layers))).cpu()
    return outputs
