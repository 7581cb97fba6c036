"""The float reference model of a quantized model, and its float32 ONNX file, as the baseline for int8.

Depends on torch and the base classes of the quantized layers; not on grid values, training or data.
"""

import copy
import os
from pathlib import Path

import torch
from torch import nn

from fedq.quant.capture import captured
from fedq.quant.grids import Grid
from fedq.quant.layers import QuantizedLayer
from fedq.quant.swap import AbsorbedReLU


def float_reference(model: nn.Module) -> nn.Module:
    """A deep copy with the same float weights, in which all layers are torch's own again and there are no grids.

    Its keys are those of the model before `quantize`. The model itself does not change.
    """
    reference = copy.deepcopy(model)
    for module in list(reference.modules()):
        if isinstance(module, AbsorbedReLU):
            module.__class__ = nn.ReLU  # type: ignore[assignment]  # it still has the attributes of nn.ReLU
        elif isinstance(module, QuantizedLayer):
            for kind in type(module).__mro__:
                if issubclass(kind, QuantizedLayer):  # remove what the quantized class added; grids are removed below
                    for name in kind.__annotations__:
                        module.__dict__.pop(name, None)
            module.__class__ = float_base(type(module))  # type: ignore[assignment]
        for name, child in list(module.named_children()):
            if isinstance(child, Grid):
                delattr(module, name)
    return reference


def float_base(kind: type[nn.Module]) -> type[nn.Module]:
    """The torch.nn class of a quantized layer: the first one among its bases."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.") and base is not nn.Module:
            return base
    raise TypeError(f"{kind.__name__}: derives from no layer of torch.nn, so it has no float reference model")


def export_float32(
    model: nn.Module,
    input_shape: tuple[int, ...],
    path: str | os.PathLike[str],
    *,
    input_dtype: torch.dtype = torch.float32,
) -> None:
    """Write the float reference model of `model` as ONNX, with a dynamic batch size.

    `input_shape`: the shape of one example. ExportError if the model cannot be captured.
    """
    proto = captured(float_reference(model).cpu().eval(), input_shape, input_dtype)
    Path(path).write_bytes(proto.SerializeToString(deterministic=True))
