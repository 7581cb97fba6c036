"""Layers that compute in training what integer kernels compute later. Knows torch and grids.

Knows no Opacus and no ONNX, but is shaped for Opacus: the grids are applied in `__call__`, around the
hooks, so that whoever hooks the layer sees a plain layer between a quantized input and its raw output.
Hence the per-sample gradients of the plain layers are exact here, and a learned range is a module of its
own to Opacus.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq.quant.fake import snap_parameters
from fedq.quant.grids import Grid
from fedq.quant.weights import WeightFormat


@dataclass(frozen=True)
class Product:
    """One weight of a layer, the bias that is added, and the grid of what it is multiplied with (None: float)."""

    weight: str
    bias: str | None
    grid: Grid | None


class QuantizedLayer(nn.Module):
    """What all quantized layers share: grids around a plain layer whose weights and biases are on grids too."""

    form: WeightFormat | None  # None: float, and only spelled out
    input_grid: Grid | None
    output_grid: Grid | None
    # The grid that the input is on, which may belong to another layer. In a tuple, so that torch does not
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

        `inner`: grids that a kind of layer has beside these two, as its `equip` takes them.
        """
        layer.__class__ = cls
        assert isinstance(layer, QuantizedLayer)  # for mypy
        layer.form = form
        layer.input_grid, layer.output_grid = input_grid, output_grid
        layer.source = None if input_grid is None else (input_grid,)
        layer.equip(**inner)
        return layer

    def equip(self) -> None:
        """What a kind of layer needs beside its grids, once those are there."""

    @property
    def products(self) -> list[Product]:
        """All weights, for whoever wants to see their integers."""
        bias = None if getattr(self, "bias", None) is None else "bias"
        return [Product("weight", bias, None if self.source is None else self.source[0])]

    def snapped(self, product: Product) -> tuple[Tensor, Tensor | None]:
        """A weight and its bias on their grids."""
        weight: Tensor = getattr(self, product.weight)
        bias: Tensor | None = None if product.bias is None else getattr(self, product.bias)
        if self.form is None:
            return weight, bias
        step = None if product.grid is None else product.grid.bias_step
        # Weights that are not trained are always rounded as they are delivered: there is nothing to average over.
        training = self.training and weight.requires_grad
        return snap_parameters(weight, bias, step, self.form, training=training)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        (x,) = args or kwargs.values()
        if self.input_grid is not None:
            x = self.input_grid(x)
        y = super().__call__(x)
        return y if self.output_grid is None else self.output_grid(y)


def is_hooked(layer: nn.Module) -> bool:
    """Whether somebody hooks the layer to see the gradients of its calls."""
    return layer.training and torch.is_grad_enabled() and bool(layer._backward_hooks)


class QLinear(QuantizedLayer, nn.Linear):  # bias: Parameter | None, as torch has it
    """nn.Linear with integer weights, one step an output row."""

    def forward(self, x: Tensor) -> Tensor:
        (product,) = self.products
        weight, bias = self.snapped(product)
        return functional.linear(x, weight, bias)


class QConv1d(QuantizedLayer, nn.Conv1d):
    """nn.Conv1d with integer weights, one step an output channel."""

    def forward(self, x: Tensor) -> Tensor:
        (product,) = self.products
        weight, bias = self.snapped(product)
        return self._conv_forward(x, weight, bias)  # type: ignore[no-any-return]


class QConv2d(QuantizedLayer, nn.Conv2d):
    """nn.Conv2d with integer weights, one step an output channel; any stride, padding, dilation and groups."""

    def forward(self, x: Tensor) -> Tensor:
        (product,) = self.products
        weight, bias = self.snapped(product)
        return self._conv_forward(x, weight, bias)  # type: ignore[no-any-return]


class QEmbedding(QuantizedLayer, nn.Embedding):
    """nn.Embedding with integer rows, one step a row. Nothing is multiplied, so it has no input grid."""

    def forward(self, x: Tensor) -> Tensor:
        (product,) = self.products
        weight, _ = self.snapped(product)
        return functional.embedding(
            x, weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )
