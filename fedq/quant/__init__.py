"""Quantization-aware training and the export of the int8 model. Depends on torch and ONNX.

Does not know data, privacy accounting, Flower or configuration.
"""

from fedq.quant.attention import QMultiheadAttention
from fedq.quant.calibration import with_fixed_ranges
from fedq.quant.export import export_onnx
from fedq.quant.float_reference import export_float32
from fedq.quant.grad_samplers import register_grad_samplers
from fedq.quant.int8_model import ExportError, Int8Model
from fedq.quant.layers import QConv1d, QConv2d, QEmbedding, QLinear, QuantizedLayer
from fedq.quant.parity import relative_difference
from fedq.quant.recurrent import QLSTM
from fedq.quant.swap import LayerReport, QuantReport, enable_per_example_gradients, quantize
from fedq.quant.weights import WeightFormat

__all__ = [
    "QLSTM",
    "ExportError",
    "Int8Model",
    "LayerReport",
    "QConv1d",
    "QConv2d",
    "QEmbedding",
    "QLinear",
    "QMultiheadAttention",
    "QuantReport",
    "QuantizedLayer",
    "WeightFormat",
    "enable_per_example_gradients",
    "export_float32",
    "export_onnx",
    "quantize",
    "register_grad_samplers",
    "relative_difference",
    "with_fixed_ranges",
]
