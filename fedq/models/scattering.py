"""Wavelet scattering of images (Bruna and Mallat 2013): fixed convolutions and moduli. Knows shapes; no data.

Not how a model is used. Nothing here is learned or measured: filters and ranges follow from theory, so under DP they
cost no epsilon (Tramer and Boneh 2021, arXiv:2011.11660). J = 2 scales and L = 8 angles: 81 maps of a channel.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedq.models.shapes import check_images, check_shapes

_ANGLES = 8
_SIGMA = 0.8  # pixels: width of the finest wavelet along its wave; across it is twice that
_RADIUS = 6  # pixels at the finest scale; beyond lie 3e-5 of a wavelet's magnitude
_LOW_RADIUS = 8, 9  # of the low-pass filter on all pixels, and on every second one
MAPS = 1 + 2 * _ANGLES + _ANGLES**2
# Largest response of a wavelet, of what its input's range allows: |psi| sums to 0.64 at most.
_RESPONSE = 0.64


class Scattering(nn.Module):
    """Images (n, c, h, w) -> (n, 81 c, h // 4, w // 4): orders 0, 1 and 2, in kymatio's order of the paths.

    Filters and borders are those of kymatio (arXiv:1812.11214), cut off where 3e-5 is left of a wavelet and 1e-5 of a
    low-pass filter. `largest`: magnitude of an input value, public; the ranges of int8 grids follow from it.
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
        signed, response = (-largest, largest), _RESPONSE * largest
        self.low0 = _convolution(_low_pass(), 4, inputs=signed, outputs=signed)
        self.fine = _convolution(_wavelets(0), 1, inputs=signed, outputs=(-response, response))
        self.coarse = _convolution(_wavelets(1), 2, inputs=signed, outputs=(-response, response))
        self.low1_fine = _convolution(_low_pass(), 4, inputs=(0, response), outputs=(0, response))
        self.low1_coarse = _convolution(_half_low_pass(padded), 2, inputs=(0, response), outputs=(0, response))
        second = response * _RESPONSE / 2  # a modulus is no negative: half of the wavelet meets it
        self.second = _convolution(_wavelets(1), 2, inputs=(0, response), outputs=(-second, second))
        self.low2 = _convolution(_half_low_pass(padded), 2, inputs=(0, second), outputs=(0, second))

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.sides
        out = (height // 4 - 2, width // 4 - 2)
        x = self.pad(x.reshape(-1, 1, *self.shape))
        fine, coarse = _modulus(self.fine(x)), _modulus(self.coarse(x))
        second = _modulus(self.second(fine.reshape(-1, 1, height, width)))
        maps = [
            self.low0(x).reshape(-1, 1, *out),
            self.low1_fine(fine.reshape(-1, 1, height, width)).reshape(-1, _ANGLES, *out),
            self.low1_coarse(coarse.reshape(-1, 1, height // 2, width // 2)).reshape(-1, _ANGLES, *out),
            self.low2(second.reshape(-1, 1, height // 2, width // 2)).reshape(-1, _ANGLES**2, *out),
        ]
        return torch.cat(maps, 1).reshape(-1, MAPS * self.channels, *out)


def scatter_linear(input_shape: Sequence[int], num_outputs: int, *, largest: float = 2.1) -> nn.Module:
    """Softmax regression on scattering coefficients: 39,700 weights on 28x28x1 and 10 classes, which start from 0.

    Each three maps in a row are brought to mean 0 and variance 1 over one example (Tramer and Boneh 2021, table 9).
    """
    layers, shape = _front("scatter_linear", input_shape, num_outputs, largest)
    output = nn.Linear(math.prod(shape), num_outputs)
    # The loss is convex: a random start would be noise to be unlearned.
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    layers |= {"flatten": nn.Flatten(), "output": output}
    return nn.Sequential(layers)


def scatter_cnn(input_shape: Sequence[int], num_outputs: int, *, largest: float = 2.1) -> nn.Module:
    """Two convolutions of 16 and 32 channels on scattering coefficients (Tramer and Boneh 2021, table 8)."""
    layers, (maps, height, width) = _front("scatter_cnn", input_shape, num_outputs, largest)
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


def _front(
    model: str, input_shape: Sequence[int], num_outputs: int, largest: float
) -> tuple["OrderedDict[str, nn.Module]", tuple[int, int, int]]:
    """Scattering and its normalisation, and the shape that they make of an example."""
    check_shapes(input_shape, num_outputs)
    channels, height, width = check_images(model, input_shape, least=5)
    if not 0 < largest < math.inf:
        raise ValueError(f"model.largest={largest}: must be the largest magnitude of an input value; try 1 for pixels")
    maps = MAPS * channels
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        scattering=Scattering((channels, height, width), largest=largest),
        norm=nn.GroupNorm(maps // 3, maps, affine=False),
    )
    return layers, (maps, height // 4, width // 4)


def _modulus(waves: Tensor) -> Tensor:
    """Of real parts and as many imaginary parts behind them."""
    return (waves[:, :_ANGLES].square() + waves[:, _ANGLES:].square()).sqrt()


def _convolution(
    filters: np.ndarray, stride: int, *, inputs: tuple[float, float], outputs: tuple[float, float]
) -> nn.Conv2d:
    """A convolution on the torus with filters (k, h, w), which never learns."""
    count, height, width = filters.shape
    # Outputs of a low-pass filter at the first and last place are of the padding: it takes a stride less of it.
    cut = stride * (count == 1)
    layer = nn.Conv2d(
        1, count, (height, width), stride=stride, bias=False, padding_mode="circular",
        padding=(height // 2 - cut, width // 2 - cut),
    )  # fmt: skip
    # A convolution of torch's does not turn the filter around.
    turned = np.ascontiguousarray(filters[:, None, ::-1, ::-1], dtype=np.float32)
    layer.weight = nn.Parameter(torch.from_numpy(turned), requires_grad=False)
    layer.input_range, layer.output_range = inputs, outputs  # type: ignore[assignment]
    return layer


def _wavelets(scale: int) -> np.ndarray:
    """Morlet wavelets (16, k, k) of 8 angles: real parts, imaginary parts."""
    radius = _RADIUS * 2**scale
    sigma, frequency = _SIGMA * 2**scale, 0.75 * math.pi / 2**scale
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    found = []
    for angle in range(_ANGLES):
        theta = (_ANGLES // 2 - 1 - angle) * math.pi / _ANGLES
        along = y * math.cos(theta) + x * math.sin(theta)
        across = x * math.cos(theta) - y * math.sin(theta)
        envelope = np.exp(-(along**2 + across**2 / 4) / (2 * sigma**2)) / (4 * math.pi * sigma**2)
        wave = envelope * np.exp(1j * frequency * along)
        found.append(wave - envelope * wave.sum() / envelope.sum())  # its mean is 0
    return np.concatenate([np.real(found), np.imag(found)])


def _low_pass() -> np.ndarray:
    """A Gaussian (1, k, k), for all pixels."""
    places = np.arange(-_LOW_RADIUS[0], _LOW_RADIUS[0] + 1)
    weights = _gauss(places)
    return np.outer(weights, weights)[None]


def _half_low_pass(sides: Sequence[int]) -> np.ndarray:
    """The same filter (1, h, w) for every second pixel: its frequencies up to theirs."""
    kernels = []
    for side in sides:
        half = side // 2
        torus = sum(_gauss(np.arange(side) - turn * side) for turn in range(-1, 3))
        spectrum = np.fft.fft(torus).real[np.r_[0 : side // 4, side - side // 4 : side]]
        kernel = np.fft.fftshift(np.fft.ifft(spectrum).real)
        # An even number of weights has no middle: the outermost is halved, and stands on both sides.
        kernel = np.append(kernel, kernel[0])
        kernel[[0, -1]] /= 2
        middle, radius = half // 2, min(half // 2, _LOW_RADIUS[1])
        kernels.append(kernel[middle - radius : middle + radius + 1])
    return np.outer(*kernels)[None]


def _gauss(places: np.ndarray) -> np.ndarray:
    sigma = 2 * _SIGMA
    weights: np.ndarray = np.exp(-(places**2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)
    return weights
