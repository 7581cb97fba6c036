"""Quantization-aware training and the real int8 model that comes out of it. Knows torch and ONNX.

Knows no data, privacy accounting, Flower or configuration.
"""

from fedq.quant.export import ExportError, export_onnx
from fedq.quant.float_twin import export_float32
from fedq.quant.grad_samplers import register_grad_samplers
from fedq.quant.int8_model import Int8Model
from fedq.quant.layers import QConv2d, QLinear
from fedq.quant.swap import LayerReport, QuantReport, quantize

__all__ = [
    "ExportError",
    "Int8Model",
    "LayerReport",
    "QConv2d",
    "QLinear",
    "QuantReport",
    "export_float32",
    "export_onnx",
    "quantize",
    "register_grad_samplers",
]
