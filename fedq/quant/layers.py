"""Layers that compute in training what integer kernels compute later. Depends on torch and grids.

They do not use Opacus or ONNX, but they support Opacus: the grids are applied in `__call__`, outside the hooks. So a
hook on a layer sees a plain layer between a quantized input and its raw output. Therefore the per-sample gradients of
the plain layers are exact here, and Opacus sees a learned range as a separate module.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq.quant.fake import fake_quantize_parameters
from fedq.quant.grids import Grid
from fedq.quant.weights import WeightFormat


@dataclass(frozen=True)
class Product:
    """One weight of a layer, its bias, and the grid of its other operand (None: float)."""

    weight: str
    bias: str | None
    grid: Grid | None


class QuantizedLayer(nn.Module):
    """The common base of quantized layers: grids around a plain layer whose weights and biases are on grids too."""

    form: WeightFormat | None  # None: float weights, in fedq's implementation of the layer
    input_grid: Grid | None
    output_grid: Grid | None
    # The grid of the input, which may belong to another layer. In a tuple, so that torch does not
    # register that layer's grid here a second time.
    source: tuple[Grid] | None

    @classmethod
    def adopt(
        cls,
        layer: nn.Module,
        *,
        form: WeightFormat | None,
        input_grid: Grid | None = None,
        output_grid: Grid | None = None,
        **inner: Grid | None,
    ) -> "QuantizedLayer":
        """Turn a plain layer into a quantized one in place: identity, parameters, hooks and keys stay.

        `inner`: further grids of this kind of layer, as arguments of `add_grids`.
        """
        layer.__class__ = cls
        assert isinstance(layer, QuantizedLayer)  # for mypy
        layer.form = form
        layer.input_grid, layer.output_grid = input_grid, output_grid
        layer.source = None if input_grid is None else (input_grid,)
        layer.add_grids(**inner)
        return layer

    def add_grids(self) -> None:
        """Add what this kind of layer needs beside its input and output grids."""

    @property
    def products(self) -> list[Product]:
        """All weights of the layer, with bias and grid."""
        bias = None if getattr(self, "bias", None) is None else "bias"
        return [Product("weight", bias, None if self.source is None else self.source[0])]

    def fake_quantized(self, product: Product) -> tuple[Tensor, Tensor | None]:
        """A weight and its bias after fake quantization."""
        weight: Tensor = getattr(self, product.weight)
        bias: Tensor | None = None if product.bias is None else getattr(self, product.bias)
        if self.form is None:
            return weight, bias
        step = None if product.grid is None else product.grid.bias_step
        # Weights that are not trained are always rounded as in the export: there is no noise to average out.
        training = self.training and weight.requires_grad
        return fake_quantize_parameters(weight, bias, step, self.form, training=training)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        (x,) = args or kwargs.values()
        if self.input_grid is not None:
            x = self.input_grid(x)
        y = super().__call__(x)
        return y if self.output_grid is None else self.output_grid(y)


def is_hooked(layer: nn.Module) -> bool:
    """Whether a hook on the layer reads the gradients of its calls."""
    return layer.training and torch.is_grad_enabled() and bool(layer._backward_hooks)


class QLinear(QuantizedLayer, nn.Linear):  # bias: Parameter | None, as torch has it
    """nn.Linear with integer weights, one step per output row."""

    def forward(self, x: Tensor) -> Tensor:
        (product,) = self.products
        weight, bias = self.fake_quantized(product)
        return functional.linear(x, weight, bias)


class QConv1d(QuantizedLayer, nn.Conv1d):
    """nn.Conv1d with integer weights, one step per output channel."""

    def forward(self, x: Tensor) -> Tensor:
        (product,) = self.products
        weight, bias = self.fake_quantized(product)
        return self._conv_forward(x, weight, bias)  # type: ignore[no-any-return]


class QConv2d(QuantizedLayer, nn.Conv2d):
    """nn.Conv2d with integer weights, one step per output channel; any stride, padding, dilation and groups."""

    def forward(self, x: Tensor) -> Tensor:
        (product,) = self.products
        weight, bias = self.fake_quantized(product)
        return self._conv_forward(x, weight, bias)  # type: ignore[no-any-return]


class QEmbedding(QuantizedLayer, nn.Embedding):
    """nn.Embedding with integer rows, one step per row. It multiplies nothing, so it has no input grid."""

    def forward(self, x: Tensor) -> Tensor:
        (product,) = self.products
        weight, _ = self.fake_quantized(product)
        return functional.embedding(
            x, weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )
