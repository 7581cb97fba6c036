"""Reference models for small inputs, each a plain `nn.Sequential`. Depends on shapes only.

Weights have torch's default initialisation from torch's global generator: the caller seeds it.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fedq.models.shapes import check_images, check_shapes

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
STANDARDIZE = ("none", "example")

# (kernel 1, kernel 2, stride, padding) of `cnn`. The second row is the first at half the scale, for
# images under 14 pixels: on 8x8 it ends in 32 maps of 4x4, like the first on 28x28.
FULL_SCALE, HALF_SCALE = (8, 4, 2, 3), (4, 2, 1, 1)
SMALLEST_FULL, SMALLEST_HALF = 14, 5  # pixels: the smallest side that leaves one value after the last pooling


def linear(input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """One linear layer on the flattened input: softmax or linear regression, depending on the loss."""
    check_shapes(input_shape, num_outputs)
    return nn.Sequential(
        OrderedDict(flatten=nn.Flatten(), output=nn.Linear(math.prod(input_shape), num_outputs)),
    )


def mlp(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    hidden: Sequence[int] = (64,),
    activation: str = "relu",
    standardize: str = "none",
) -> nn.Module:
    """Fully connected layers of `hidden` widths, with an activation after each but the last.

    `standardize="example"` gives each input mean 0 and variance 1 over its own values. No other example takes part,
    so it costs no epsilon, and gradients of similar norm lose less to DP-SGD's clipping.
    """
    check_shapes(input_shape, num_outputs)
    if isinstance(hidden, int):
        raise ValueError(f"model.hidden={hidden}: must be a list of widths; try [{hidden}]")
    if not hidden or any(width < 1 for width in hidden):
        raise ValueError(f"model.hidden={list(hidden)}: must be one or more widths of at least 1; try [64]")
    if activation not in ACTIVATIONS:
        raise ValueError(f"model.activation={activation}: must be one of {', '.join(ACTIVATIONS)}; try relu")
    if standardize not in STANDARDIZE:
        raise ValueError(f"model.standardize={standardize}: must be one of {', '.join(STANDARDIZE)}; try none")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    widths = [math.prod(input_shape), *hidden]
    if standardize == "example":
        layers["standardize"] = nn.LayerNorm(widths[0], elementwise_affine=False)
    for i, (before, after) in enumerate(pairwise(widths), start=1):
        layers[f"hidden{i}"] = nn.Linear(before, after)
        layers[f"{activation}{i}"] = ACTIVATIONS[activation]()
    layers["output"] = nn.Linear(widths[-1], num_outputs)
    return nn.Sequential(layers)


def cnn(input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """The tanh CNN of Papernot et al. 2021, Table 1 (arXiv:2007.14191): 26,010 parameters on Fashion-MNIST.

    The first convolution's "same" padding on 28x28 is 3, as in the authors' TensorFlow Privacy and in Opacus'
    MNIST example. Images of 5 to 13 pixels (digits: 8) get the same network at half the kernel size and stride 1.
    """
    check_shapes(input_shape, num_outputs)
    channels, height, width = check_images("cnn", input_shape, least=SMALLEST_HALF)
    kernel1, kernel2, stride, padding = FULL_SCALE if min(height, width) >= SMALLEST_FULL else HALF_SCALE

    def after_pooling(side: int) -> int:
        pooled1 = (side + 2 * padding - kernel1) // stride
        return (pooled1 - kernel2) // stride  # the convolution's + 1 and the pooling's - 1 cancel

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16, kernel1, stride=stride, padding=padding),
            tanh1=nn.Tanh(),
            pool1=nn.MaxPool2d(2, stride=1),
            conv2=nn.Conv2d(16, 32, kernel2, stride=stride),
            tanh2=nn.Tanh(),
            pool2=nn.MaxPool2d(2, stride=1),
            flatten=nn.Flatten(),
            hidden=nn.Linear(32 * after_pooling(height) * after_pooling(width), 32),
            tanh3=nn.Tanh(),
            output=nn.Linear(32, num_outputs),
        )
    )


def cnn_wide(input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Four 3x3 convolutions of 32, 64, 128 and 128 channels with ReLU: 241,546 parameters on 28x28x1, 10 classes."""
    check_shapes(input_shape, num_outputs)
    channels = check_images("cnn_wide", input_shape, least=4)[0]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, width in enumerate((32, 64, 128, 128), start=1):
        layers[f"conv{i}"] = nn.Conv2d(channels, width, 3, padding=1)
        layers[f"relu{i}"] = nn.ReLU()
        if i in (2, 3):
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        channels = width
    layers |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "output": nn.Linear(channels, num_outputs)}
    return nn.Sequential(layers)
