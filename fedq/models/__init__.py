"""Small reference models. Depends on torch; not on data, training, quantization, Flower or Hydra."""

from fedq.models.reference import ACTIVATIONS, cnn, cnn_wide, linear, mlp
from fedq.models.resnet import resnet8_gn
from fedq.models.scattering import scatter_cnn, scatter_linear
from fedq.models.transformer import transformer

__all__ = [
    "ACTIVATIONS",
    "cnn",
    "cnn_wide",
    "linear",
    "mlp",
    "resnet8_gn",
    "scatter_cnn",
    "scatter_linear",
    "transformer",
]
