"""Wavelet scattering of images (Bruna and Mallat 2013): fixed convolutions and moduli. Depends on shapes; not on data.

Nothing here is learned or measured: filters and ranges follow from theory, so under DP they cost no epsilon
(Tramer and Boneh 2021, arXiv:2011.11660). J = 2 scales and L = 8 angles give 81 maps per channel.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fedq.models.shapes import check_images, check_shapes

_ANGLES = 8
_SIGMA = 0.8  # pixels: width of the finest wavelet along its wave; twice that across it
_RADIUS = 6  # pixels at the finest scale; 3e-5 of a wavelet's magnitude is outside
MAPS = 1 + 2 * _ANGLES + _ANGLES**2
# Largest response of a wavelet, relative to the range of its input: |psi| sums to 0.64 at most.
_RESPONSE = 0.64

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


class Scattering(nn.Module):
    """Images (n, c, h, w) -> (n, 81 c, h // 4, w // 4): orders 0, 1 and 2, in kymatio's order of paths.

    Filters and borders are those of kymatio (arXiv:1812.11214), with wavelets truncated where 3e-5 of them is left.
    `largest`: public bound on the magnitude of an input value; the ranges of int8 grids follow from it.
    """

    def __init__(self, input_shape: Sequence[int], *, largest: float) -> None:
        super().__init__()
        self.channels, *sides = input_shape
        self.shape = tuple(sides)
        padded = [((side + 4) // 4 + 1) * 4 for side in sides]
        before = [(all_ - side) // 2 for all_, side in zip(padded, sides, strict=True)]
        after = [all_ - side - some for all_, side, some in zip(padded, sides, before, strict=True)]
        self.sides = tuple(padded)
        self.pad = nn.ReflectionPad2d((before[1], after[1], before[0], after[0]))
        first = _RESPONSE * largest
        second = _RESPONSE / 2 * first  # a modulus is not negative, so only half of the wavelet's range is possible
        self.fine = _wavelets(0, inputs=(-largest, largest), outputs=(-first, first))
        self.coarse = _wavelets(1, inputs=(-largest, largest), outputs=(-first, first))
        self.second = _wavelets(1, inputs=(0, first), outputs=(-second, second))
        self.low0 = LowPass(padded, every=1, inputs=(-largest, largest))
        self.low1_fine = LowPass(padded, every=1, inputs=(0, first))
        self.low1_coarse = LowPass(padded, every=2, inputs=(0, first))
        self.low2 = LowPass(padded, every=2, inputs=(0, second))

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.sides
        x = self.pad(x.reshape(-1, 1, *self.shape))
        fine, coarse = _modulus(self.fine(x)), _modulus(self.coarse(x))
        second = _modulus(self.second(fine.reshape(-1, 1, height, width)))
        second = second.reshape(-1, _ANGLES**2, height // 2, width // 2)
        maps = [self.low0(x), self.low1_fine(fine), self.low1_coarse(coarse), self.low2(second)]
        return torch.cat(maps, 1).reshape(-1, MAPS * self.channels, height // 4 - 2, width // 4 - 2)


class LowPass(nn.Module):
    """Gaussian means at every fourth value on the torus but the first and last: (.., h, w) -> (.., h / 4 - 2, ...).

    The kernel is a product of two Gaussians, so each axis has its own small matrix. `every`: 1 if the input holds all
    pixels of the padded image, 2 for every second one; its Gaussian then has frequencies up to theirs, as in kymatio.
    """

    def __init__(self, padded: Sequence[int], *, every: int, inputs: tuple[float, float]) -> None:
        super().__init__()
        self.down, self.along = (_averages(side, every, inputs) for side in padded)

    def forward(self, x: Tensor) -> Tensor:
        maps, height, width = x.shape[1], self.down.in_features, self.along.in_features
        # Rows one below the other: int8 kernels need a matrix.
        rows = self.along(x.reshape(-1, width)).reshape(-1, height, self.along.out_features)
        columns = self.down(rows.transpose(1, 2).reshape(-1, height))
        means: Tensor = columns.reshape(-1, maps, self.along.out_features, self.down.out_features)
        return means.transpose(2, 3)


def scatter_linear(
    input_shape: Sequence[int], num_outputs: int, *, largest: float = 2.1, eps: float = 1e-4
) -> nn.Module:
    """Softmax regression on scattering coefficients: 39,700 weights on 28x28x1 and 10 classes, initialised to 0.

    Each group of three adjacent maps gets mean 0 and variance 1 over one example (Tramer and Boneh 2021, table 9),
    less for small variances: `eps` is added to the variance of coefficients.
    """
    layers, shape = _frozen_scattering("scatter_linear", input_shape, num_outputs, largest, eps)
    output = nn.Linear(math.prod(shape), num_outputs)
    # The loss is convex: a random start would only be noise that training must remove.
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    layers |= {"flatten": nn.Flatten(), "output": output}
    return nn.Sequential(layers)


def scatter_cnn(input_shape: Sequence[int], num_outputs: int, *, largest: float = 2.1, eps: float = 1e-4) -> nn.Module:
    """Two convolutions of 16 and 32 channels on scattering coefficients (Tramer and Boneh 2021, table 8)."""
    layers, (maps, height, width) = _frozen_scattering("scatter_cnn", input_shape, num_outputs, largest, eps)
    after = -(-height // 2) * -(-width // 2)
    layers |= {
        "conv1": nn.Conv2d(maps, 16, 3, stride=2, padding=1),
        "tanh1": nn.Tanh(),
        "conv2": nn.Conv2d(16, 32, 3, padding=1),
        "tanh2": nn.Tanh(),
        "flatten": nn.Flatten(),
        "hidden": nn.Linear(32 * after, 32),
        "tanh3": nn.Tanh(),
        "output": nn.Linear(32, num_outputs),
    }
    return nn.Sequential(layers)


def _frozen_scattering(
    model: str, input_shape: Sequence[int], num_outputs: int, largest: float, eps: float
) -> tuple["OrderedDict[str, nn.Module]", tuple[int, int, int]]:
    """Scattering and its normalisation, and the shape of their output for one example."""
    check_shapes(input_shape, num_outputs)
    channels, height, width = check_images(model, input_shape, least=5)
    if not 0 < largest < math.inf:
        raise ValueError(f"model.largest={largest}: must be the largest magnitude of an input value; try 1 for pixels")
    if not 0 < eps < math.inf:
        raise ValueError(f"model.eps={eps}: must be a positive number; try 1e-4")
    maps = MAPS * channels
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        scattering=Scattering((channels, height, width), largest=largest),
        norm=nn.GroupNorm(maps // 3, maps, eps=eps, affine=False),
    )
    return layers, (maps, height // 4, width // 4)


def _modulus(waves: Tensor) -> Tensor:
    """The modulus of real parts followed by the same number of imaginary parts."""
    return (waves[:, :_ANGLES].square() + waves[:, _ANGLES:].square()).sqrt()


def _wavelets(scale: int, *, inputs: tuple[float, float], outputs: tuple[float, float]) -> nn.Conv2d:
    """A frozen convolution on the torus with Morlet wavelets of 8 angles, at every 2**scale-th pixel.

    Outputs: 8 real parts, then 8 imaginary parts.
    """
    radius, sigma, frequency = _RADIUS * 2**scale, _SIGMA * 2**scale, 0.75 * math.pi / 2**scale
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    found = []
    for angle in range(_ANGLES):
        theta = (_ANGLES // 2 - 1 - angle) * math.pi / _ANGLES
        along = y * math.cos(theta) + x * math.sin(theta)
        across = x * math.cos(theta) - y * math.sin(theta)
        envelope = np.exp(-(along**2 + across**2 / 4) / (2 * sigma**2)) / (4 * math.pi * sigma**2)
        wave = envelope * np.exp(1j * frequency * along)
        found.append(wave - envelope * wave.sum() / envelope.sum())  # so that the mean is 0
    filters = np.concatenate([np.real(found), np.imag(found)])
    layer = nn.Conv2d(
        1, len(filters), 2 * radius + 1, stride=2**scale, padding=radius, padding_mode="circular", bias=False
    )
    # torch's convolution does not flip the filter.
    return _fixed(layer, filters[:, None, ::-1, ::-1], inputs, outputs)


def _averages(side: int, every: int, inputs: tuple[float, float]) -> nn.Linear:
    """side // every values -> side // 4 - 2 Gaussian means around every fourth pixel."""
    sigma, pixels = 2 * _SIGMA, np.arange(side)
    torus = sum(np.exp(-((pixels + turn * side) ** 2) / (2 * sigma**2)) for turn in range(-2, 3))
    spectrum = np.fft.fft(torus / (math.sqrt(2 * math.pi) * sigma)).real
    if every == 2:
        spectrum = spectrum[np.r_[0 : side // 4, side - side // 4 : side]]
    kernel = np.fft.ifft(spectrum).real
    rows = [np.roll(kernel, centre) for centre in range(4 // every, len(kernel) - 4 // every, 4 // every)]
    return _fixed(nn.Linear(len(kernel), len(rows), bias=False), np.stack(rows), inputs, None)


def _fixed(
    layer: _Layer, weight: np.ndarray, inputs: tuple[float, float], outputs: tuple[float, float] | None
) -> _Layer:
    """The layer with these frozen weights, and with the ranges of its int8 grids."""
    values = np.ascontiguousarray(weight, dtype=np.float32)
    layer.weight = nn.Parameter(torch.from_numpy(values), requires_grad=False)
    layer.input_range, layer.output_range = inputs, outputs  # type: ignore[assignment]
    return layer
