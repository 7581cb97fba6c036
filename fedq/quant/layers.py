"""Linear and Conv2d that compute in training what an int8 kernel computes later. Knows torch and grids.

Knows no Opacus and no ONNX, but is shaped for Opacus: the grids are applied in `__call__`, around the
hooks, so that whoever hooks the layer sees a plain layer between a quantized input and its raw output.
Hence the per-sample gradients of the plain layers are exact here, and a learned range is a module of its
own to Opacus.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fedq.quant.fake import snap_parameters
from fedq.quant.grids import Grid


class QuantizedLayer(nn.Module):
    """What QLinear and QConv2d share: grids around a plain layer whose weight and bias are on grids too."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_range: int
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
        weight_range: int,
        input_grid: Grid | None = None,
        output_grid: Grid | None = None,
    ) -> "QuantizedLayer":
        """Turn a plain layer into a quantized one in place: identity, parameters, hooks and keys stay."""
        layer.__class__ = cls
        assert isinstance(layer, QuantizedLayer)  # for mypy
        layer.weight_range = weight_range
        layer.input_grid, layer.output_grid = input_grid, output_grid
        layer.source = None if input_grid is None else (input_grid,)
        return layer

    def snapped_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias on their grids."""
        step = None if self.source is None else self.source[0].step
        return snap_parameters(self.weight, self.bias, step, self.weight_range)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        (x,) = args or kwargs.values()
        if self.input_grid is not None:
            x = self.input_grid(x)
        y = super().__call__(x)
        return y if self.output_grid is None else self.output_grid(y)


class QLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]  # bias: Parameter | None, as torch has it
    """nn.Linear with int8 weights per output row."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.snapped_parameters()
        return functional.linear(x, weight, bias)


class QConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[misc]
    """nn.Conv2d with int8 weights per output channel; any stride, padding, dilation and groups."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.snapped_parameters()
        return self._conv_forward(x, weight, bias)  # type: ignore[no-any-return]


LAYERS: dict[type[nn.Module], type[QuantizedLayer]] = {nn.Linear: QLinear, nn.Conv2d: QConv2d}
