"""Quantization-aware training and the real int8 model that comes out of it. Knows torch and ONNX.

Knows no data, privacy accounting, Flower or configuration.
"""

from fedq.quant.agreement import apart
from fedq.quant.attention import QMultiheadAttention
from fedq.quant.calibration import with_fixed_ranges
from fedq.quant.export import export_onnx
from fedq.quant.float_reference import export_float32
from fedq.quant.grad_samplers import register_grad_samplers
from fedq.quant.int8_model import ExportError, Int8Model
from fedq.quant.layers import QConv1d, QConv2d, QEmbedding, QLinear, QuantizedLayer
from fedq.quant.recurrent import QLSTM
from fedq.quant.swap import LayerReport, QuantReport, quantize, spell_out
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
    "apart",
    "export_float32",
    "export_onnx",
    "quantize",
    "register_grad_samplers",
    "spell_out",
    "with_fixed_ranges",
]
