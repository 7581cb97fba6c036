"""Write a quantized model as an ONNX file for int8 kernels. Depends on torch and the quantized layers.

Does not know training or data; `onnx_graph` holds what concerns only the finished graph. torch's own exporter captures
the graph (see `capture`), so all float operations between quantized layers are handled by torch. Before the capture,
grids and parameters are replaced by QuantizeLinear/DequantizeLinear pairs and integer constants; after it, the file is
cleaned. Time on one core: 2.6 s for the first export of a process, mostly for onnxscript's registry, and 0.4 to 0.7 s
for the next. A converter of our own over torch.fx would take milliseconds, but would support only the operations in
its table.
"""

import contextlib
import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedq.quant.attention import WHOLE, QMultiheadAttention
from fedq.quant.capture import captured
from fedq.quant.grids import DynamicGrid, Grid
from fedq.quant.int8_model import ExportError
from fedq.quant.layers import Product, QConv1d, QConv2d, QEmbedding, QLinear, QuantizedLayer
from fedq.quant.parity import checked, compare, comparison_inputs
from fedq.quant.weights import parameter_levels


class _OnnxGrid(nn.Module):
    """A grid as the pair QuantizeLinear, DequantizeLinear.

    Levels are stored as uint8, which is onnxruntime's fastest format with int8 weights on x86. onnxruntime converts
    int8 levels to uint8 by itself, but not for a tensor with two readers, and it then fuses no integer kernel. The
    16 levels of 4 bits are a part of the uint8 levels, and a Clip keeps the values inside them.
    """

    def __init__(self, grid: Grid, *, of_kernel: bool) -> None:
        super().__init__()
        self.step, self.zero_point = float(grid.step), grid.zero_point
        self.within = None if grid.bits == 8 else (grid.lowest * self.step, grid.highest * self.step)
        self.of_kernel = of_kernel  # a kernel's output must be quantized before any other operation

    def forward(self, x: Tensor) -> Tensor:
        if self.within is not None:
            x = self._fake_quantized(x) if self.of_kernel else x
            x = x.clamp(*self.within)
        return self._fake_quantized(x)

    def _fake_quantized(self, x: Tensor) -> Tensor:
        ops, form = torch.ops.quantized_decomposed, (self.step, self.zero_point, 0, 255, torch.uint8)
        return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *form), *form)  # type: ignore[no-any-return]


class _IntegerParameters(nn.Module):
    """A weight as int8 and its bias as int32 constants, each followed by a DequantizeLinear per output channel."""

    weight: Tensor
    weight_step: Tensor
    bias: Tensor | None
    input_step: float

    def __init__(self, layer: QuantizedLayer, product: Product, rows: slice = slice(None)) -> None:
        super().__init__()
        assert layer.form is not None  # `_freeze` skips layers without integer weights
        weight: Tensor = getattr(layer, product.weight)[rows]
        bias: Tensor | None = None if product.bias is None else getattr(layer, product.bias)[rows]
        source = None if product.grid is None else product.grid.bias_step
        with torch.no_grad():
            levels, step, bias_levels, _ = parameter_levels(weight, bias, source, layer.form)
        self.register_buffer("weight", levels.to(torch.int8))
        self.register_buffer("weight_step", step.flatten().clone())
        self.register_buffer("bias", None if bias_levels is None else bias_levels.to(torch.int32))
        self.input_step = 0.0 if source is None else float(source)

    def forward(self) -> tuple[Tensor, Tensor | None]:
        weight = _dequantize(self.weight, self.weight_step, -128, 127)
        if self.bias is None:
            return weight, None
        return weight, _dequantize(self.bias, self.weight_step * self.input_step, -(2**31), 2**31 - 1)

    def rows(self, chosen: Tensor) -> Tensor:
        """The selected rows of the weight; only these rows are dequantized."""
        levels = functional.embedding(chosen, self.weight).to(torch.float32)
        return levels * functional.embedding(chosen, self.weight_step[:, None])


def _dequantize(levels: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
    zeros = torch.zeros(len(step), dtype=levels.dtype)
    return torch.ops.quantized_decomposed.dequantize_per_channel(  # type: ignore[no-any-return]
        levels, step, zeros, 0, lowest, highest, levels.dtype
    )


class _Frozen(QuantizedLayer):
    """A mixin before a quantized layer's own class: the parameters are integers followed by DequantizeLinear."""

    def fake_quantized(self, product: Product) -> tuple[Tensor, Tensor | None]:
        integers: nn.ModuleDict = self.integers  # type: ignore[assignment]
        return integers[product.weight]()  # type: ignore[no-any-return]


class _FrozenEmbedding(_Frozen):
    def forward(self, x: Tensor) -> Tensor:
        parameters = self.integers["weight"]  # type: ignore[index]
        return parameters.rows(x)  # type: ignore[no-any-return,union-attr]


class _FrozenConvolution(_Frozen):
    """Padding with other values than zero comes after the grid, so the grid is applied again before the kernel."""

    pads: tuple[list[int], str] | None  # arguments of functional.pad; None: zeros, which the kernel pads itself

    def forward(self, x: Tensor) -> Tensor:
        if self.pads is not None:
            amounts, mode = self.pads
            x = self.again(functional.pad(x, amounts, mode=mode))  # type: ignore[operator]
        return super().forward(x)  # type: ignore[no-any-return]


class _FrozenAttention(_Frozen):
    """The grid is applied right before each product: onnxruntime fuses no kernel across a Split in three."""

    def _third(self, part: int) -> tuple[Tensor, Tensor | None]:
        integers: nn.ModuleDict = self.integers  # type: ignore[assignment]
        return integers["in_proj_weight" if part == WHOLE else f"third{part}"]()  # type: ignore[no-any-return]

    def _after_projection(self, x: Tensor) -> Tensor:
        return x

    def _before_product(self, x: Tensor) -> Tensor:
        return x if self.output_grid is None else self.output_grid(x)


def export_onnx(
    model: nn.Module,
    input_shape: tuple[int, ...],
    path: str | os.PathLike[str],
    *,
    skip: Sequence[str] = (),
    input_dtype: torch.dtype = torch.float32,
    examples: np.ndarray | None = None,
) -> None:
    """Write `model` (quantized by `quantize`, then trained) to `path`: the complete file or none.

    `input_shape`: the shape of one example, without the batch axis, which stays dynamic. `skip`: as for `quantize`. The
    model does not change. The file is checked by ONNX, loaded and run. ExportError if onnxruntime would compute a Conv,
    Gemm or MatMul outside `skip` on floats, or if the outputs differ from the model's on some `examples`
    (n, *input_shape), or on generated inputs if there are none.
    """
    from fedq.quant.onnx_graph import clean, drop_idle_relus, name_float_products  # lazy: imports onnx

    proto = captured(_freeze(model), input_shape, input_dtype)
    drop_idle_relus(proto.graph)
    allowed = name_float_products(proto, skip)
    clean(proto)
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(proto.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        delivered = checked(proto, temporary, allowed)
        compare(model, delivered, comparison_inputs(examples, tuple(input_shape), input_dtype))
        os.chmod(temporary, 0o644)  # mkstemp creates a file that only its owner can read
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _freeze(model: nn.Module) -> nn.Module:
    """A copy in eval mode with integer weights in its layers and ONNX operators as its grids."""
    frozen = copy.deepcopy(model).cpu().eval()
    layers = {
        name: layer
        for name, layer in frozen.named_modules()
        if isinstance(layer, QuantizedLayer) and layer.form is not None
    }
    if not layers:
        raise ExportError("model has no quantized layer: call fedq.quantize on it before training")
    for name, tensor in frozen.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{name}: holds NaN or infinity: the training diverged; lower the learning rate")
    for name, layer in layers.items():
        if layer.source is None and not isinstance(layer, QEmbedding):
            raise ExportError(
                f"{name or 'model'}: the activations are float, so no int8 kernel can compute this layer; "
                "use quant.activations=8"
            )
        layer.integers = nn.ModuleDict({p.weight: _IntegerParameters(layer, p) for p in layer.products})
        if isinstance(layer, QMultiheadAttention):
            thirds = {f"third{i}": _IntegerParameters(layer, layer.products[0], layer.rows(i)) for i in range(3)}
            layer.integers.update(thirds)
        if isinstance(layer, QConv1d | QConv2d) and layer.source is not None:
            _pad_before(layer, layer.source[0])
    # After the loop above: a layer's source may be another layer's output grid.
    for layer in layers.values():
        layer.__class__ = _frozen_class(type(layer))
    for module in list(frozen.modules()):
        for name, grid in list(module._modules.items()):  # one grid may have two names
            if isinstance(grid, DynamicGrid):
                raise ExportError(
                    "the model's activation ranges are dynamic, but an int8 kernel needs one range for all examples: "
                    "give public calibration inputs (quant.calibration=FILE.npy), or use quant.activations=fixed"
                )
            if isinstance(grid, Grid):
                of_kernel = name == "output_grid" and isinstance(module, QConv1d | QConv2d | QLinear)
                setattr(module, name, _OnnxGrid(grid, of_kernel=of_kernel))
    return frozen


def _pad_before(layer: Any, grid: Grid) -> None:
    """Remove the padding of a convolution that will be frozen; `_FrozenConvolution` pads instead."""
    layer.again, layer.pads = grid, None
    if layer.padding_mode != "zeros":
        layer.pads = (layer._reversed_padding_repeated_twice, layer.padding_mode)
        layer.padding_mode, layer.padding = "zeros", (0,) * len(layer.kernel_size)


_FROZEN: dict[type[QuantizedLayer], type[_Frozen]] = {
    QConv1d: _FrozenConvolution,
    QConv2d: _FrozenConvolution,
    QEmbedding: _FrozenEmbedding,
    QMultiheadAttention: _FrozenAttention,
}


def _frozen_class(kind: type[QuantizedLayer]) -> type[QuantizedLayer]:
    return type(f"Frozen{kind.__name__}", (_FROZEN.get(kind, _Frozen), kind), {})
