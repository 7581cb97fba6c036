"""Capture a model's graph as ONNX with torch's exporter (torch.export and onnxscript). Does not know quantization."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedq.quant.int8_model import ExportError

if TYPE_CHECKING:
    import onnx

OPSET = 20


def captured(model: nn.Module, input_shape: Sequence[int], dtype: torch.dtype) -> "onnx.ModelProto":
    """The ONNX graph of a model on the CPU in evaluation mode, with a dynamic batch size.

    `input_shape`: the shape of one example. ExportError if the model's forward cannot be captured.
    """
    import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed

    example = torch.zeros((2, *input_shape), dtype=dtype)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
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
    except Exception as error:  # the exporter wraps every error of a user's forward
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ExportError(f"the model's forward cannot be captured for ONNX: {cause}") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about optional packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
