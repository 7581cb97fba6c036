"""Small reference models. Knows torch; not data, training, quantization, Flower or Hydra."""

from fedq.models.reference import ACTIVATIONS, cnn, linear, mlp

__all__ = ["ACTIVATIONS", "cnn", "linear", "mlp"]
