"""Write a quantized model as an ONNX file for int8 kernels. Knows torch and the quantized layers.

Knows no training and no data; what concerns the finished graph alone is in `onnx_graph`. The graph is
captured by torch's own exporter (torch.export and onnxscript), so any float operation between quantized
layers is the library's business; only grids and parameters are replaced before, by
QuantizeLinear/DequantizeLinear pairs and integer constants, and the file is cleaned after. Measured on one
core: 2.6 s for the first export of a process, most of it onnxscript's registry, and 0.4 to 0.7 s for the
next. A converter of our own over torch.fx would take milliseconds, but know only the operations in its
table.
"""

import contextlib
import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedq.quant.fake import parameter_levels
from fedq.quant.grids import Grid
from fedq.quant.int8_model import Int8Model
from fedq.quant.layers import QConv2d, QLinear, QuantizedLayer

if TYPE_CHECKING:
    import onnx

OPSET = 20


class ExportError(RuntimeError):
    """The model cannot become an int8 model; nothing was written."""


class _OnnxGrid(nn.Module):
    """A grid as the pair QuantizeLinear, DequantizeLinear.

    Levels are stored as uint8, which is onnxruntime's fastest format beside int8 weights on x86. It would
    convert int8 levels by itself, but not where a tensor has two readers, and there it then fuses no
    integer kernel.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.step, self.zero_point = float(grid.step), grid.zero_point

    def forward(self, x: Tensor) -> Tensor:
        ops, form = torch.ops.quantized_decomposed, (self.step, self.zero_point, 0, 255, torch.uint8)
        return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *form), *form)  # type: ignore[no-any-return]


class _IntegerParameters(nn.Module):
    """Weight as int8 and bias as int32 constants, each behind one DequantizeLinear per output channel."""

    weight: Tensor
    weight_step: Tensor
    bias: Tensor | None
    bias_step: Tensor | None

    def __init__(self, layer: QuantizedLayer, source: Grid) -> None:
        super().__init__()
        with torch.no_grad():
            levels, step, bias_levels, bias_step = parameter_levels(
                layer.weight, layer.bias, source.step, layer.weight_range
            )
        self.register_buffer("weight", levels.to(torch.int8))
        self.register_buffer("weight_step", step.flatten())
        self.register_buffer("bias", None if bias_levels is None else bias_levels.to(torch.int32))
        self.register_buffer("bias_step", bias_step)

    def forward(self) -> tuple[Tensor, Tensor | None]:
        weight = _dequantize(self.weight, self.weight_step, -128, 127)
        if self.bias is None or self.bias_step is None:
            return weight, None
        return weight, _dequantize(self.bias, self.bias_step, -(2**31), 2**31 - 1)


def _dequantize(levels: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
    zeros = torch.zeros(len(step), dtype=levels.dtype)
    return torch.ops.quantized_decomposed.dequantize_per_channel(  # type: ignore[no-any-return]
        levels, step, zeros, 0, lowest, highest, levels.dtype
    )


class _FrozenLinear(QLinear):
    def snapped_parameters(self) -> tuple[Tensor, Tensor | None]:
        return self.integers()  # type: ignore[no-any-return,operator]


class _FrozenConv2d(QConv2d):
    def snapped_parameters(self) -> tuple[Tensor, Tensor | None]:
        return self.integers()  # type: ignore[no-any-return,operator]


_FROZEN: dict[type[nn.Module], type[QuantizedLayer]] = {QLinear: _FrozenLinear, QConv2d: _FrozenConv2d}


def export_onnx(model: nn.Module, input_shape: tuple[int, ...], path: str | os.PathLike[str]) -> None:
    """Write `model`, as `quantize` left it and training moved it, to `path`: the whole file or none.

    `input_shape`: of one example, without the batch axis, which stays dynamic. The model is untouched. The
    file is checked by ONNX and loaded once: a product with int8 weights that onnxruntime would not compute
    on integers raises ExportError.
    """
    from fedq.quant.onnx_graph import clean  # lazily: it imports onnx

    proto = _captured(_freeze(model), tuple(input_shape))
    clean(proto)
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(proto.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        _check(proto, Int8Model(temporary))
        os.chmod(temporary, 0o644)  # mkstemp's file is for the owner only
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _check(proto: "onnx.ModelProto", delivered: Int8Model) -> None:
    import onnx

    from fedq.quant.onnx_graph import products_without_int8_weights

    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    ran = delivered.float_products
    if len(ran) > len(products_without_int8_weights(proto)):
        raise ExportError(
            f"onnxruntime would compute {', '.join(ran)} on float32 in spite of int8 weights: it has no int8 "
            "kernel for this combination of operations; name the layer in quant.skip"
        )


def _freeze(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose layers hold integers and whose grids are ONNX's."""
    frozen = copy.deepcopy(model).cpu().eval()
    layers = {name: layer for name, layer in frozen.named_modules() if isinstance(layer, QuantizedLayer)}
    if not layers:
        raise ExportError("model has no quantized layer: call fedq.quantize on it before training")
    for name, tensor in frozen.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{name}: holds NaN or infinity; the training diverged, so lower its lr")
    for name, layer in layers.items():
        if layer.source is None:
            raise ExportError(
                f"{name or 'model'}: its activations are float, so no int8 kernel can compute it; "
                "use quant.activations=8"
            )
        layer.integers = _IntegerParameters(layer, layer.source[0])
    # Only now: a layer's source may be another layer's output grid.
    for layer in layers.values():
        layer.__class__ = _FROZEN[type(layer)]
        for name in ("input_grid", "output_grid"):
            if getattr(layer, name) is not None:
                setattr(layer, name, _OnnxGrid(getattr(layer, name)))
    return frozen


def _captured(frozen: nn.Module, input_shape: tuple[int, ...]) -> "onnx.ModelProto":
    import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed

    example = torch.zeros((2, *input_shape))
    try:
        with _quiet():
            program = torch.onnx.export(
                frozen,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["input"],
                output_names=["output"],
                opset_version=OPSET,
                verbose=False,
            )
    except ImportError as error:
        raise ExportError(f"the export needs onnxscript ({error}); pip install onnxscript") from error
    except Exception as error:  # the exporter wraps whatever a user's forward raises
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ExportError(f"the model's forward cannot be captured for ONNX: {cause}") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages it would also support."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
