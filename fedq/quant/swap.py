"""Make a model quantization-aware in place, and report which layers are quantized. Depends on torch modules.

Does not know training, Opacus or ONNX.
"""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedq.quant.attention import QMultiheadAttention
from fedq.quant.grids import RANGES, FixedGrid, Grid
from fedq.quant.layers import QConv1d, QConv2d, QEmbedding, QLinear, QuantizedLayer
from fedq.quant.placement import GridPlan, Placement, place
from fedq.quant.recurrent import QLSTM
from fedq.quant.weights import WeightFormat

LAYERS: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Linear: QLinear,
    nn.Conv1d: QConv1d,
    nn.Conv2d: QConv2d,
    nn.Embedding: QEmbedding,
    nn.LSTM: QLSTM,
    nn.MultiheadAttention: QMultiheadAttention,
}
# Layers with weights that fedq cannot quantize; the report names them.
_OTHER_WEIGHTS = (
    nn.modules.conv._ConvNd, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase,
    nn.MultiheadAttention, nn.Linear,
)  # fmt: skip


class AbsorbedReLU(nn.Identity):
    """A ReLU that the grid of the previous layer replaces: a grid from 0 has no negative level."""


@dataclass(frozen=True)
class LayerReport:
    """The result of `quantize` for one layer."""

    name: str
    kind: str  # class of the float layer: "Linear", "Conv2d", ...
    quantized: bool
    reason: str = ""  # why the layer stays float
    input: str = ""  # the grid of its input, e.g. "[-4, 4] fixed", or "float"
    output: str = ""


@dataclass(frozen=True)
class QuantReport:
    """The result of `quantize`, in the order of the model's modules."""

    layers: tuple[LayerReport, ...]
    ranges: str
    form: WeightFormat
    untraceable: str | None  # why the model could not be traced; None if it could
    weights: tuple[str, ...] = ()  # names of the parameters that become integers

    @property
    def portable(self) -> bool:
        """Whether int8 kernels are exact on every processor."""
        return self.form.portable

    @property
    def quantized(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers if layer.quantized)

    @property
    def left_float(self) -> dict[str, str]:
        """Layer name -> reason."""
        return {layer.name: layer.reason for layer in self.layers if not layer.quantized}

    def __str__(self) -> str:
        lines = [
            f"{layer.name} ({layer.kind}): {self.form.describe()}, input {layer.input}, output {layer.output}"
            if layer.quantized
            else f"{layer.name} ({layer.kind}): float32, {layer.reason}"
            for layer in self.layers
        ]
        if not self.portable:
            lines.append(f"weight levels up to {self.form.largest} can saturate on x86 without VNNI; 63 cannot")
        if self.untraceable is not None:
            lines.append(f"each layer was planned alone, since the model could not be traced: {self.untraceable}")
        return "\n".join(lines)


def quantize(
    model: nn.Module,
    *,
    weights: int = 8,
    activations: int | None = 8,
    ranges: str = "fixed",
    granularity: str = "channel",
    rounding: str = "nearest",
    weight_range: int | None = None,
    activation_range: float = 8.0,
    input_range: float = 4.0,
    skip: Sequence[str] = (),
) -> QuantReport:
    """Make every Linear, Conv1d, Conv2d, Embedding, LSTM and MultiheadAttention quantization-aware, in place.

    `weights`: 8, 4 or 2 (ternary) bits, one step for each `granularity` (channel or tensor). `rounding` of weights in
    training: nearest or stochastic. `activations`: 8 or 4 bits, or None for float. `ranges`: fixed, learned, observed
    or dynamic. `activation_range` is the top of a ReLU's grid, [0, activation_range], and of any grid for values of
    unknown range; `input_range` is for the model's input, [-input_range, input_range].
    `weight_range`: largest 8-bit level (default 63). `skip`: shell patterns of module names; these modules and all
    their submodules stay float. The keys of the state dict stay those of the float model; `learned` adds parameters
    (`log_range`), `observed` adds buffers (`range`). ValueError for a model without a layer to quantize.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> print(quantize(model))
    0 (Linear): int8 weights, input [-4, 4] fixed, output [0, 8] fixed
    2 (Linear): int8 weights, input [0, 8] fixed, output float
    """
    form = WeightFormat(weights, granularity, rounding, weight_range)
    _check(activations, ranges, activation_range, input_range)
    reasons = _reasons_to_stay_float(model, skip)
    chosen = {module: name for name, module in model.named_modules() if type(module) in LAYERS and name not in reasons}
    if not chosen:
        raise ValueError(_nothing_to_do(reasons))
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"model: parameter {name!r} holds NaN or infinity; give the model finite weights")
    placement = place(model, list(chosen), input_range=input_range, activation_range=activation_range)
    idle = [name for layer, name in chosen.items() if layer not in placement.plans]
    if idle:
        raise ValueError(
            f"model: no input reaches {', '.join(repr(name) for name in idle)} in eval mode, so it would not be "
            "exported; remove it from the model, or name it in quant.skip"
        )
    if activations is None:
        for layer in chosen:
            LAYERS[type(layer)].adopt(layer, form=form)
        placement = Placement()
    else:
        _carry_out(placement, _GridMaker(ranges, activations), form)
    _refuse_fused_paths(model)
    return _report(model, reasons, placement, ranges="off" if activations is None else ranges, form=form)


_WITH_OWN_GRADIENTS = (nn.MultiheadAttention, nn.LSTM, nn.Conv1d, nn.Conv2d)


def enable_per_example_gradients(model: nn.Module) -> None:
    """Give the float layers that remain fedq's per-example gradients, in place. The outputs stay the same.

    For DP: Opacus has no per-example gradients for torch's MultiheadAttention and LSTM, and its own versions have other
    keys. Its gradients of convolutions are wrong for padding with other values than zero and for channels_last tensors.
    """
    for module in list(model.modules()):
        if type(module) in _WITH_OWN_GRADIENTS and _unsupported(module) is None:
            LAYERS[type(module)].adopt(module, form=None)
    _refuse_fused_paths(model)


def _carry_out(placement: Placement, make: "_GridMaker", form: WeightFormat) -> None:
    for layer, plan in placement.plans.items():
        inner = {"out_grid": make(plan.inner, layer)} if plan.inner is not None else {}
        LAYERS[type(layer)].adopt(
            layer, form=form, input_grid=make(plan.input, layer), output_grid=make(plan.output, layer), **inner
        )
    for layer, plan in placement.plans.items():
        if plan.producer is not None:
            assert isinstance(layer, QuantizedLayer)
            assert isinstance(plan.producer, QuantizedLayer)
            assert plan.producer.output_grid is not None  # by the plan
            layer.source = (plan.producer.output_grid,)
    for relu in placement.absorbed:
        relu.__class__ = AbsorbedReLU


@dataclass(frozen=True)
class _GridMaker:
    ranges: str
    bits: int

    def __call__(self, plan: GridPlan | None, layer: nn.Module) -> Grid | None:
        if plan is None:
            return None
        if plan.bounded:
            return FixedGrid(plan.limit, signed=plan.signed, bounded=True, bits=self.bits)
        if plan.declared or (plan.is_model_input and self.ranges == "learned"):
            # The gradient of the model's input, which plain training never computes, would cost two thirds of a step
            # of the cnn. So a public constant is used.
            return FixedGrid(plan.limit, signed=plan.signed, bits=self.bits)
        grid: Grid = RANGES[self.ranges](plan.limit, signed=plan.signed, bits=self.bits)
        return grid.to(next(layer.parameters()).device)


def _refuse_fused_paths(model: nn.Module) -> None:
    """Switch off the fused path of torch's encoder, which in eval mode bypasses the layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


def _check(activations: int | None, ranges: str, activation_range: float, input_range: float) -> None:
    if activations not in (8, 4, None):
        raise ValueError(f"activations={activations}: must be 8 or 4 bits, or None for float; use activations=8")
    if ranges not in RANGES:
        raise ValueError(f"ranges={ranges}: must be one of {', '.join(RANGES)}; try fixed")
    for key, value in {"activation_range": activation_range, "input_range": input_range}.items():
        if not (math.isfinite(value) and 1e-3 <= value <= 1e6):
            raise ValueError(f"quant.{key}={value}: must be a number from 0.001 to 1e6; try 8")


def _reasons_to_stay_float(model: nn.Module, skip: Sequence[str]) -> dict[str, str]:
    """Layer name -> reason, for every layer with weights that will stay float."""
    projections = {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    layers = {m for m in model.modules() if isinstance(m, _OTHER_WEIGHTS)} - projections  # parts of attention
    skipped = _skipped(model, skip, layers | projections)
    reasons = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            raise ValueError(f"model: {name or 'it'} is quantized already; call quantize once, on the float model")
        if module in layers:
            if module in skipped:
                reasons[name] = "named in quant.skip"
            elif type(module) not in LAYERS:
                reasons[name] = f"{type(module).__name__} is not supported"
            elif (why := _unsupported(module)) is not None:
                reasons[name] = why
        elif module in projections & skipped and not any(
            isinstance(m, nn.MultiheadAttention) and m.out_proj is module for m in skipped
        ):
            raise ValueError(f"quant.skip={name!r}: is quantized with its attention layer; name that layer instead")
    return reasons


def _skipped(model: nn.Module, skip: Sequence[str], layers: set[nn.Module]) -> set[nn.Module]:
    """Modules that match a pattern, and their submodules; ValueError for a pattern that matches no layer."""
    named = list(model.named_modules(remove_duplicate=False))
    skipped: set[nn.Module] = set()
    for pattern in skip:
        found = {name: module for name, module in named if fnmatch.fnmatchcase(name, pattern)}
        if not found:
            known = ", ".join(name for name, _ in named if name)
            raise ValueError(f"quant.skip={pattern!r}: matches no module; the model has {known}")
        inside = {part for module in found.values() for part in module.modules()}
        # A module that is not torch's may multiply without a layer, and the export then asks to skip it.
        own = any(not type(part).__module__.startswith("torch.") for part in inside)
        if not (own or layers & inside):
            raise ValueError(
                f"quant.skip={pattern!r}: matches {', '.join(found)}, without a layer to quantize, so it would "
                "have no effect; remove it, or name a layer with weights or a module that holds one"
            )
        skipped |= inside
    return skipped


def _unsupported(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.MultiheadAttention):
        return QMultiheadAttention.unsupported(layer)
    if isinstance(layer, nn.LSTM):
        return QLSTM.unsupported(layer)
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "Embedding with max_norm is not supported"
    if isinstance(layer, nn.Embedding) and (layer.scale_grad_by_freq or layer.sparse):
        return "Embedding with scale_grad_by_freq or sparse gradients is not supported"
    return None


def _nothing_to_do(reasons: dict[str, str]) -> str:
    why = "; ".join(f"{name or 'it'}: {reason}" for name, reason in reasons.items())
    return f"model has no layer to quantize{f' ({why})' if why else ''}; use quant=off"


def _report(
    model: nn.Module,
    reasons: dict[str, str],
    placement: Placement,
    *,
    ranges: str,
    form: WeightFormat,
) -> QuantReport:
    reports, names = [], []
    for name, module in model.named_modules():
        if name in reasons:
            reports.append(LayerReport(name, type(module).__name__, quantized=False, reason=reasons[name]))
        elif isinstance(module, QuantizedLayer) and module.form is not None:
            source, output = module.source, module.output_grid
            names += [f"{name}.{product.weight}".removeprefix(".") for product in module.products]
            reports.append(
                LayerReport(
                    name,
                    type(module).__name__.removeprefix("Q"),
                    quantized=True,
                    input="float" if source is None else source[0].describe(),
                    output="float" if output is None else output.describe(),
                )
            )
    return QuantReport(tuple(reports), ranges, form, placement.untraceable, tuple(names))
