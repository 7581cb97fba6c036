"""Look inside a quantized model: integers, ranges, and where it differs from its float reference model.

Depends on torch and layers; not on data or files. The float reference model has the same weights without rounding and
no grids; a grid from 0 is replaced by the ReLU whose work it does. Every grid is reported with the layer that holds it.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedq.quant.float_reference import float_base
from fedq.quant.grids import DynamicGrid, Grid
from fedq.quant.layers import Product, QuantizedLayer
from fedq.quant.weights import WeightFormat, parameter_levels

_BATCH = 32  # examples per batch; the outputs of every layer are stored for one batch
BINS = 15


@dataclass(frozen=True)
class WeightView:
    """The integers of one weight, or a float parameter."""

    name: str
    shape: tuple[int, ...]
    zeros: float  # share of levels that are 0
    histogram: tuple[int, ...]  # counts of levels, from the lowest to the highest; empty: float
    bytes: int  # in the file: levels (and gaps, if sparse), steps and bias; a tied weight counts once
    tied_to: str | None = None  # name of the weight that it shares


@dataclass(frozen=True)
class GridView:
    """One grid, and statistics of its inputs in the quantized model."""

    role: str  # input, output, hidden, chances
    kind: str
    bits: int
    low: float | None  # None: dynamic, each example has its own range
    high: float | None
    clipped: float  # share of activations outside the grid; values below a grid from 0 (a ReLU) do not count
    used: float  # largest magnitude divided by the end of the grid; 0: no input


@dataclass(frozen=True)
class LayerView:
    """One layer with weights. Errors are relative: ||difference|| / ||output of the float reference model||."""

    name: str
    kind: str
    bits: int | None  # bits of the weights; None: float32
    weights: tuple[WeightView, ...]
    grids: tuple[GridView, ...]
    source: str | None  # the layer whose output grid the input uses
    own_error: float  # only this layer quantized, with float input
    weights_error: float  # only its weights quantized
    error: float  # everything quantized up to this layer

    @property
    def bytes(self) -> int:
        return sum(weight.bytes for weight in self.weights)


@dataclass(frozen=True)
class Inspection:
    """All layers with weights, in the order of the model's modules."""

    layers: tuple[LayerView, ...]
    examples: int
    parameters: int  # number of values; a tied weight counts once

    @property
    def worst(self) -> LayerView:
        """The layer with the largest error of its own."""
        return max(self.layers, key=lambda layer: layer.own_error)

    @property
    def int8_bytes(self) -> int:
        """Bytes of all weights, steps and biases, without the rest of an ONNX file."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def float32_bytes(self) -> int:
        return 4 * self.parameters


def inspect(model: nn.Module, inputs: Tensor) -> Inspection:
    """Inspect a quantized model on `inputs` (n, ...). The model does not change. ValueError for a float model."""
    if not any(_form(module) is not None for module in model.modules()):
        raise ValueError("model has no quantized layer: call fedq.quantize on it before training")
    if not len(inputs):
        raise ValueError("inputs: there are no examples; give at least 1")
    broken = [n for n, v in model.state_dict().items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f"{broken[0]}: holds NaN or infinity: the training diverged; lower the learning rate")
    bench = _Comparison(model)
    with torch.no_grad():
        for start in range(0, len(inputs), _BATCH):
            bench.compare(inputs[start : start + _BATCH])
        parameters = {id(p): p.numel() for p in model.parameters()}
        return Inspection(tuple(bench.views()), len(inputs), sum(parameters.values()))


class _RecordingGrid(nn.Module):
    """A grid that can be switched off, and that records statistics of its inputs while recording is on."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid, self.on, self.counts = grid, False, False
        self.values, self.clipped, self.used = 0, 0, 0.0

    @property
    def bias_step(self) -> float | Tensor | None:
        return self.grid.bias_step  # an LSTM's products read it from the grid of the hidden states

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x if self.grid.signed else torch.relu(x)
        if self.counts and x.numel():
            self._count(x)
        return self.grid(x)  # type: ignore[no-any-return]

    def _count(self, x: Tensor) -> None:
        self.values += x.numel()
        if isinstance(self.grid, DynamicGrid):
            self.used = 1.0
            return
        step = float(self.grid.step)
        levels = x / step
        beyond = levels > self.grid.highest + 0.5
        if self.grid.signed:
            beyond |= levels < self.grid.lowest - 0.5
            levels = levels.abs()
        self.clipped += int(beyond.sum())
        self.used = max(self.used, float(levels.max()) / self.grid.highest)

    def view(self, role: str) -> GridView:
        grid = self.grid
        dynamic = isinstance(grid, DynamicGrid)
        high = None if dynamic else float(grid.step) * grid.highest
        low = None if high is None else -high if grid.signed else 0.0
        return GridView(role, grid.kind, grid.bits, low, high, self.clipped / max(self.values, 1), self.used)


@dataclass
class _RelativeError:
    """Squared norms of a difference and of its reference, summed over calls and batches."""

    difference: float = 0.0
    whole: float = 0.0

    def add(self, got: Tensor, expected: Tensor) -> None:
        self.difference += float((got.double() - expected.double()).square().sum())
        self.whole += float(expected.double().square().sum())

    @property
    def relative(self) -> float:
        if not self.difference:
            return 0.0
        return math.sqrt(self.difference / self.whole) if self.whole else math.inf


@dataclass
class _Errors:
    own: _RelativeError = field(default_factory=_RelativeError)
    weights: _RelativeError = field(default_factory=_RelativeError)
    total: _RelativeError = field(default_factory=_RelativeError)
    kept: list[Tensor] = field(default_factory=list)  # the reference's outputs of one batch, in order


class _ComparedLayer(QuantizedLayer):
    """A mixin before a quantized layer's own class: weight rounding can be switched off, and calls are compared."""

    bench: "tuple[_Comparison]"  # in a tuple, like `source`
    exact: bool

    def fake_quantized(self, product: Product) -> tuple[Tensor, Tensor | None]:
        if self.exact:
            return getattr(self, product.weight), None if product.bias is None else getattr(self, product.bias)
        return super().fake_quantized(product)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.bench[0].called(self, lambda: super(_ComparedLayer, self).__call__(*args, **kwargs))


@dataclass(frozen=True)
class _SeenWeight:
    """A weight and the name under which it was first seen; for a float parameter, the parameter itself."""

    name: str
    levels: Tensor
    step: Tensor


class _Comparison:
    """A copy of the model that can run as float, quantized, or quantized in one layer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).cpu().eval()
        self.phase: Literal["float", "quantized"] | None = None
        self.names = {module: name for name, module in self.model.named_modules()}
        self.layers = [m for m in self.names if isinstance(m, QuantizedLayer) or _has_parameters(m)]
        self.errors = {layer: _Errors() for layer in self.layers}
        self.holders: dict[int, QuantizedLayer] = {}  # grid -> the layer that holds it
        made: dict[int, _RecordingGrid] = {}
        for module in self.names:
            for name, child in list(module.named_children()):
                if isinstance(child, Grid):
                    made.setdefault(id(child), _RecordingGrid(child))
                    setattr(module, name, made[id(child)])
                    if isinstance(module, QuantizedLayer):
                        self.holders.setdefault(id(child), module)
        self.switches = list(made.values())
        for layer in self.layers:
            if isinstance(layer, QuantizedLayer):
                layer.__class__ = type(f"Probed{type(layer).__name__}", (_ComparedLayer, type(layer)), {})
                assert isinstance(layer, _ComparedLayer)  # for mypy
                layer.bench, layer.exact = (self,), False
            else:
                layer.register_forward_hook(self._float_called)

    def compare(self, inputs: Tensor) -> None:
        """Run one batch through the float reference model, each layer also alone, then through the quantized model."""
        self._turn(on=False)
        self.phase = "float"
        self.model(inputs)
        self._turn(on=True)
        self.phase = "quantized"
        self.model(inputs)
        self.phase = None

    def called(self, layer: "_ComparedLayer", call: Callable[[], Any]) -> Any:
        output = call()
        if self.phase == "float":
            self.phase = None  # the calls below are not recorded
            expected = _first(output)
            layer.exact = False
            self.errors[layer].weights.add(_first(call()), expected)
            own = [child for child in layer.children() if isinstance(child, _RecordingGrid)]
            for switch in own:
                switch.on = True
            self.errors[layer].own.add(_first(call()), expected)
            for switch in own:
                switch.on = False
            layer.exact, self.phase = True, "float"
        self._compared(layer, output)
        return output

    def _float_called(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._compared(layer, output)

    def _compared(self, layer: nn.Module, output: Any) -> None:
        errors = self.errors[layer]
        if self.phase == "float":
            errors.kept.append(_first(output).clone())  # a copy, since a later layer may work in place
        elif self.phase == "quantized" and errors.kept:
            errors.total.add(_first(output), errors.kept.pop(0))

    def _turn(self, *, on: bool) -> None:
        for switch in self.switches:
            switch.on, switch.counts = on, on
        for layer in self.layers:
            if isinstance(layer, _ComparedLayer):
                layer.exact = not on
            self.errors[layer].kept = self.errors[layer].kept if on else []

    def views(self) -> Iterator[LayerView]:
        known: dict[int, _SeenWeight] = {}
        for layer in self.layers:
            errors, name = self.errors[layer], self.names[layer]
            is_fedq_layer = isinstance(layer, QuantizedLayer)
            source = self._source(layer) if isinstance(layer, QuantizedLayer) else None
            yield LayerView(
                name,
                float_base(type(layer)).__name__ if is_fedq_layer else type(layer).__name__,
                form.bits if (form := _form(layer)) is not None else None,
                tuple(_weights(layer, name, known)),
                tuple(c.view(_role(n)) for n, c in layer.named_children() if isinstance(c, _RecordingGrid)),
                source,
                errors.own.relative,
                errors.weights.relative,
                errors.total.relative,
            )

    def _source(self, layer: QuantizedLayer) -> str | None:
        if layer.source is None:
            return None
        holder = self.holders.get(id(layer.source[0]))
        return None if holder is None or holder is layer else self.names[holder]


def _weights(layer: nn.Module, name: str, known: dict[int, _SeenWeight]) -> Iterator[WeightView]:
    """The weights of a layer; `known`: weights that were seen before, by identity."""
    prefix, form = f"{name}." if name else "", _form(layer)
    if not isinstance(layer, QuantizedLayer) or form is None:
        for key, p in layer.named_parameters(recurse=False):
            before = known.setdefault(id(p), _SeenWeight(f"{prefix}{key}", p, p))
            tied = None if before.name == f"{prefix}{key}" else before.name
            zeros = float((p == 0).double().mean()) if p.numel() else 0.0
            yield WeightView(f"{prefix}{key}", tuple(p.shape), zeros, (), 0 if tied else 4 * p.numel(), tied)
        return
    for product in layer.products:
        weight: nn.Parameter = getattr(layer, product.weight)
        bias: nn.Parameter | None = None if product.bias is None else getattr(layer, product.bias)
        source = None if product.grid is None else product.grid.bias_step
        levels, step, _, _ = parameter_levels(weight, bias, source, form)
        before = known.setdefault(id(weight), _SeenWeight(f"{prefix}{product.weight}", levels, step))
        tied = None if before.name == f"{prefix}{product.weight}" else before.name
        whole = levels.to(torch.int8).numpy()
        stored = 0 if bias is None else 4 * bias.numel()
        if tied is None or not (torch.equal(levels, before.levels) and torch.equal(step, before.step)):
            stored += _stored(whole) + 4 * step.numel()
        yield WeightView(
            f"{prefix}{product.weight}",
            tuple(weight.shape),
            float(np.mean(whole == 0)) if whole.size else 0.0,
            histogram(whole, largest=form.largest),
            stored,
            tied,
        )


def _stored(levels: np.ndarray) -> int:
    from fedq.quant.storage import LEAST_VALUES, smallest_form  # imported here, because it imports onnx

    return smallest_form(levels).bytes if levels.size >= LEAST_VALUES else levels.size


def histogram(levels: np.ndarray, *, largest: int) -> tuple[int, ...]:
    """Counts of levels -largest..largest (any shape), in at most `BINS` bins of equal width."""
    bins = min(BINS, 2 * largest + 1)
    counts, _ = np.histogram(levels, bins=bins, range=(-largest - 0.5, largest + 0.5))
    return tuple(int(count) for count in counts)


def _form(layer: nn.Module) -> WeightFormat | None:
    """The weight format; None if the weights are float, also in a layer with fedq's own implementation."""
    return layer.form if isinstance(layer, QuantizedLayer) else None


def _has_parameters(module: nn.Module) -> bool:
    return not isinstance(module, Grid) and any(True for _ in module.parameters(recurse=False))


def _role(name: str) -> str:
    return name.removesuffix("_grid")


def _first(output: Any) -> Tensor:
    """The output, or the first tensor of a layer that returns several (attention, LSTM)."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output
