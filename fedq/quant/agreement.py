"""Whether an exported file is valid, runs on integers, and computes what the model does. Knows torch and ONNX's tools.

Knows no layers and not how the file was made.
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
_MOST_APART = 0.1  # as `apart` gives it


def checked(proto: "onnx.ModelProto", path: str, allowed: set[str]) -> Int8Model:
    """The file as it runs; `allowed`: names of the products that may be of floats."""
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
        delivered = Int8Model(path)
    except Exception as error:  # onnxruntime has a class for each way to refuse a file
        raise ExportError(f"the exported graph is not valid ONNX, or onnxruntime cannot run it: {error}") from error
    # onnxruntime puts a product's name into that of what it makes of it.
    ran = [node for node in delivered.float_products if allowed.isdisjoint(re.findall(rf"{FLOAT}\d+", node))]
    if ran:
        raise ExportError(
            f"onnxruntime would compute {', '.join(ran)} on float32 in spite of int8 weights: it has no int8 "
            "kernel for this combination of operations; name the layer in quant.skip"
        )
    return delivered


def candidates(examples: np.ndarray | None, input_shape: tuple[int, ...], input_dtype: torch.dtype) -> list[Tensor]:
    """Inputs to compare on: the first that the model takes counts."""
    if examples is not None and len(examples):
        return [torch.from_numpy(np.ascontiguousarray(examples[:_COMPARED])).to(input_dtype)]
    made = torch.randn((_COMPARED, *input_shape), generator=torch.Generator().manual_seed(0))
    tokens = (made > 0).to(input_dtype)  # every table has rows 0 and 1, and a forward may read their numbers off floats
    return [made.to(input_dtype), tokens] if input_dtype.is_floating_point else [tokens]


def compare(model: nn.Module, delivered: Int8Model, candidates: list[Tensor]) -> None:
    """ExportError where the file does not compute what the model does.

    Sums of floats in another order may move a value to the next level, and what follows with it, so the bits differ;
    but far less than a wrong kernel, layout or grid makes them differ.
    """
    trained = copy.deepcopy(model).cpu().eval()
    for inputs in candidates:
        try:
            with torch.no_grad():
                expected = trained(inputs)
        except Exception as error:  # a user's own forward may raise anything
            failure = error
            continue
        break
    else:
        raise ExportError(
            f"the model fails on inputs of shape {tuple(inputs.shape)} to compare the file on: {failure}; give "
            "export_onnx some examples that it takes"
        ) from failure
    if not isinstance(expected, Tensor):
        raise ExportError(f"the model gives a {type(expected).__name__}, and one tensor is exported: return one")
    try:
        got = delivered(inputs.numpy())
    except Exception as error:
        raise ExportError(f"onnxruntime fails on inputs that the trained model takes: {error}") from error
    if got.shape != expected.shape:
        raise ExportError(f"the exported model gives outputs of shape {got.shape}, not {tuple(expected.shape)}")
    if not (far := apart(got, expected.numpy())) <= _MOST_APART:
        raise ExportError(
            f"the exported model's outputs are {far:.0%} of their own spread away from the trained model's, at most "
            f"{_MOST_APART:.0%} are rounding; nothing was written"
        )


def apart(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Mean difference of outputs (n, ...), over the mean distance of what is expected from its mean."""
    spread = float(np.abs(expected - expected.mean(axis=0)).mean())
    return float(np.abs(outputs - expected).mean()) / max(spread, 1e-6)
