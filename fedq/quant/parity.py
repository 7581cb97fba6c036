"""Check an exported file: valid ONNX, integer kernels, and numerical parity with the model. Depends on torch and ONNX.

Does not know layers or how the file was made.
"""

import copy
import re
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedq.quant.int8_model import FLOAT, ExportError, Int8Model

if TYPE_CHECKING:
    import onnx

_COMPARED = 64  # examples
_MAX_DIFFERENCE = 0.1  # largest accepted `relative_difference` of the outputs


def checked(proto: "onnx.ModelProto", path: str, allowed: set[str]) -> Int8Model:
    """Load the file; ExportError unless it is valid ONNX and runs on integers.

    `allowed`: names of the matrix products that may be computed on floats.
    """
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
        delivered = Int8Model(path)
    except Exception as error:  # onnxruntime has many exception classes for a bad file
        raise ExportError(f"the exported graph is not valid ONNX, or onnxruntime cannot run it: {error}") from error
    # onnxruntime keeps a product's name inside the name of the node that it is fused into.
    ran = [node for node in delivered.float_products if allowed.isdisjoint(re.findall(rf"{FLOAT}\d+", node))]
    if ran:
        raise ExportError(
            f"onnxruntime would compute {', '.join(ran)} on float32 despite int8 weights: it has no int8 "
            "kernel for this combination of operations; name the layer in quant.skip"
        )
    return delivered


def comparison_inputs(
    examples: np.ndarray | None, input_shape: tuple[int, ...], input_dtype: torch.dtype
) -> list[Tensor]:
    """Inputs for the comparison, in order of preference: the first one that the model accepts is used."""
    if examples is not None and len(examples):
        return [torch.from_numpy(np.ascontiguousarray(examples[:_COMPARED])).to(input_dtype)]
    made = torch.randn((_COMPARED, *input_shape), generator=torch.Generator().manual_seed(0))
    tokens = (made > 0).to(
        input_dtype
    )  # ids 0 and 1 exist in every table, also for ids that a forward reads from floats
    return [made.to(input_dtype), tokens] if input_dtype.is_floating_point else [tokens]


def compare(model: nn.Module, delivered: Int8Model, comparison_inputs: list[Tensor]) -> None:
    """ExportError unless the file computes the same outputs as the model.

    The bits may differ: float sums in another order can move a value to the next level, and the later layers with it.
    The accepted difference is far below the difference that a wrong kernel, layout or grid makes.
    """
    trained = copy.deepcopy(model).cpu().eval()
    for inputs in comparison_inputs:
        try:
            with torch.no_grad():
                expected = trained(inputs)
        except Exception as error:  # a user's forward may raise anything
            failure = error
            continue
        break
    else:
        raise ExportError(
            f"the model fails on inputs of shape {tuple(inputs.shape)} that would check the file: {failure}; give "
            "export_onnx some examples that it takes"
        ) from failure
    if not isinstance(expected, Tensor):
        raise ExportError(f"the model returns a {type(expected).__name__}: it must return one tensor")
    try:
        got = delivered(inputs.numpy())
    except Exception as error:
        raise ExportError(f"onnxruntime fails on inputs that the trained model accepts: {error}") from error
    if got.shape != expected.shape:
        raise ExportError(f"the exported model returns outputs of shape {got.shape}, not {tuple(expected.shape)}")
    if not (far := relative_difference(got, expected.numpy())) <= _MAX_DIFFERENCE:
        raise ExportError(
            f"the exported model's outputs differ from the trained model's by {far:.0%} of their spread; at most "
            f"{_MAX_DIFFERENCE:.0%} can be rounding; nothing was written"
        )


def relative_difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Mean |difference| of outputs (n, ...), relative to the mean distance of `expected` from its own mean."""
    spread = float(np.abs(expected - expected.mean(axis=0)).mean())
    return float(np.abs(outputs - expected).mean()) / max(spread, 1e-6)
