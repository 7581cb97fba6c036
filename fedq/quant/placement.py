"""Decide which grid each layer needs, from the model's graph where torch.fx can trace it. Knows torch and fx.

Changes nothing: it returns plans, and `swap` carries them out. Knows no Opacus and no ONNX.
"""

import functools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional


@dataclass(frozen=True)
class GridPlan:
    """A grid to be made: [-limit, limit] or [0, limit]."""

    limit: float
    signed: bool
    bounded: bool = False  # the values cannot leave it, whatever the data (tanh, sigmoid)
    of_data: bool = False  # holds the model's own input
    told: bool = False  # by the model's author: nothing is learned or observed about it

    @classmethod
    def of_range(cls, range: tuple[float, float]) -> "GridPlan":
        """Of a layer's own `input_range` or `output_range`: (lowest, highest)."""
        lowest, highest = range
        limit = max(-lowest, highest)
        if not (lowest <= highest and 0 < limit < math.inf):
            raise ValueError(f"a layer's range {range}: must be (lowest, highest), finite, not both 0; fix the model")
        return cls(limit, signed=lowest < 0, told=True)

    def covering(self, other: "GridPlan") -> "GridPlan":
        """The grid that holds the values of both."""
        return GridPlan(
            max(self.limit, other.limit),
            self.signed or other.signed,
            bounded=self.bounded and other.bounded,
            of_data=self.of_data or other.of_data,
        )


# A convolution's output on its way into tanh: tanh(4) rounds to 127 / 127, so nothing is lost beyond.
TANH_GRID = GridPlan(4.0, signed=True)


# An LSTM's hidden states, whatever state it is given: a sigmoid times a tanh. Its cells have no bound.
_HIDDEN = GridPlan(1.0, signed=True, bounded=True)


@dataclass
class LayerPlan:
    """Where one layer's input comes from and what its output needs."""

    input: GridPlan | None = None  # None: the input is on `producer`'s output grid already
    producer: nn.Module | None = None
    output: GridPlan | None = None
    inner: GridPlan | None = None  # of attention: the mixed values, on their way into the output projection


@dataclass
class Placement:
    """Plans by layer, in the order of the graph; `absorbed`: ReLUs that a grid makes idle."""

    plans: dict[nn.Module, LayerPlan] = field(default_factory=dict)
    absorbed: list[nn.Module] = field(default_factory=list)
    untraceable: str | None = None  # why there was no graph


@dataclass(frozen=True)
class _Value:
    """What is known of a tensor: the grid that would hold it, and the layer on whose output grid it is.

    `parts`: of a tuple of tensors, what is known of each.
    """

    fits: GridPlan
    producer: nn.Module | None = None
    parts: "tuple[_Value, ...]" = ()


# Modules, functions and methods of tensors by what they do to values.
_RELU = (nn.ReLU, torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_")
_TANH = (nn.Tanh, torch.tanh, functional.tanh, "tanh", "tanh_")
_SIGMOID = (nn.Sigmoid, torch.sigmoid, functional.sigmoid, "sigmoid", "sigmoid_", nn.Softmax, torch.softmax,
            functional.softmax, "softmax")  # fmt: skip
# Move or drop values, or choose among them: what lies on a grid stays on it. Dropout does in eval mode; in
# training mode it rescales, and its noise is far above the grid's.
_KEEPS_GRID = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Flatten,
    nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, functional.max_pool1d,
    functional.max_pool2d, functional.adaptive_max_pool2d, functional.dropout, functional.dropout2d,
    torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose, "flatten",
    "view", "reshape", "contiguous", "squeeze", "unsqueeze", "permute", "transpose", "clone",
)  # fmt: skip
# Averages: values stay within the range, but leave the grid.
_KEEPS_RANGE = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, functional.avg_pool2d,
    functional.adaptive_avg_pool2d, torch.mean, "mean",
)  # fmt: skip
_SHAPE_ONLY = ("size", "dim", "numel")  # read no values
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")  # of which `getattr` reads none; .mT does
_WITH_WEIGHTS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


def place(model: nn.Module, layers: list[nn.Module], *, input_range: float, activation_range: float) -> Placement:
    """Plan the grids of `layers` in `model`; without a graph every layer looks after itself.

    A layer that only training calls gets no plan, since what is delivered has it not; what training does with the
    others counts as much as what evaluation does.
    """
    try:
        delivered = trace(model, training=False)
    except Exception as error:  # whatever a user's forward raises when it meets a proxy
        plans = {layer: _alone(layer, activation_range) for layer in layers}
        return Placement(plans, untraceable=f"{type(error).__name__}: {error}".splitlines()[0])
    try:
        trained = trace(model, training=True)
    except Exception:
        trained = None
    return _Placer(delivered, trained, layers, input_range, activation_range).placement()


def trace(model: nn.Module, *, training: bool) -> fx.GraphModule:
    """The model's graph in one mode, in which every module of torch.nn is one node; a lone layer is seen from outside.

    Of branches that are taken by chance it has the one that this call took.
    """
    modes = {module: module.training for module in model.modules()}
    seen_from_outside = nn.Sequential(model) if type(model).__module__.startswith("torch.nn") else model
    try:
        with torch.random.fork_rng(devices=[]):
            return fx.GraphModule(seen_from_outside, _Tracer().trace(seen_from_outside.train(training)))
    finally:
        for module, training in modes.items():
            module.training = training


class _Tracer(fx.Tracer):
    """As fx's own, but looks into torch's modules that hold layers, such as an encoder; attention stays one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        holds_layers = any(isinstance(part, _WITH_WEIGHTS) for part in m.modules() if part is not m)
        looked_into = holds_layers and not isinstance(m, _WITH_WEIGHTS)
        return super().is_leaf_module(m, module_qualified_name) and not looked_into


def _alone(layer: nn.Module, activation_range: float) -> LayerPlan:
    """For a layer of which nothing is known but its type."""
    signed = GridPlan(activation_range, signed=True)
    if isinstance(layer, nn.Embedding):
        return LayerPlan()
    return LayerPlan(
        input=_told(layer, "input_range") or signed,
        output=_told(layer, "output_range") or (None if isinstance(layer, nn.Linear | nn.LSTM) else signed),
        inner=signed if isinstance(layer, nn.MultiheadAttention) else None,
    )


def _given(node: fx.Node, *names: str) -> list[fx.Node]:
    """The first arguments of a call, by place or by name, as far as there are any: alone, a layer is seen with one."""
    given = [node.args[i] if i < len(node.args) else node.kwargs.get(name) for i, name in enumerate(names)]
    return [argument for argument in given if isinstance(argument, fx.Node)]


def _told(layer: nn.Module, name: str) -> GridPlan | None:
    """The range that the model's author gave a layer as `input_range` or `output_range`: a pair of numbers."""
    range = getattr(layer, name, None)
    return None if range is None else GridPlan.of_range(range)


class _Placer:
    """One walk over each graph in the order of computation; `trained`: None where it could not be seen."""

    def __init__(
        self,
        delivered: fx.GraphModule,
        trained: fx.GraphModule | None,
        layers: list[nn.Module],
        input_range: float,
        activation_range: float,
    ) -> None:
        graphs = [delivered] if trained is None else [delivered, trained]
        self.modules = {name: module for graph in graphs for name, module in graph.named_modules()}
        self.nodes = [node for graph in graphs for node in graph.graph.nodes]
        self.all_seen = trained is not None
        called = {self._called(node) for node in delivered.graph.nodes}
        self.layers = {layer for layer in layers if layer in called}
        self.input_fits = GridPlan(input_range, signed=True, of_data=True)
        self.signed = GridPlan(activation_range, signed=True)
        self.positive = GridPlan(activation_range, signed=False)
        self.calls: dict[nn.Module, list[fx.Node]] = {}
        for node in self.nodes:
            if node.op == "call_module":
                self.calls.setdefault(self.modules[node.target], []).append(node)

    def placement(self) -> Placement:
        result = Placement()
        calls = {layer: nodes for layer, nodes in self.calls.items() if layer in self.layers}
        ends = {layer: [end for node in nodes for end in self._ends(node)] for layer, nodes in calls.items()}
        into_relu = {layer for layer in calls if ends[layer] and all(self._is(e, _RELU) for e in ends[layer])}
        idle = self._modules_called_only_at({end for layer in into_relu for end in ends[layer]})
        for layer in calls:
            output = self._output(layer, ends[layer], idle)
            attends = isinstance(layer, nn.MultiheadAttention)
            result.plans[layer] = LayerPlan(output=output, inner=self.signed if attends else None)
        gridded = {end for layer in into_relu if result.plans[layer].output for end in ends[layer]}
        result.absorbed = list(self._modules_called_only_at(gridded))
        self._plan_inputs(result.plans)
        return result

    def _output(self, layer: nn.Module, ends: list[fx.Node], idle: dict[nn.Module, None]) -> GridPlan | None:
        """The grid of a layer's output, or None to leave it float."""
        if (told := _told(layer, "output_range")) is not None:
            return told
        if isinstance(layer, nn.Embedding | nn.LSTM):
            return None
        if isinstance(layer, nn.MultiheadAttention):
            return self.signed  # of what it projects its input to
        if ends and all(self._is(end, _RELU) for end in ends):
            # The grid takes the ReLU's place, where that is a module to take the place of. A function
            # stays, and behind a grid it would block the gradient of values that round to 0: then better a
            # grid at the readers, whose kernels' outputs are the same, unless one of them has none.
            taken = all(self._called(end) in idle for end in ends)
            readers = [reader for end in ends for reader in self._ends(end)]
            gridded = bool(readers) and all(self._called(reader) in self.layers for reader in readers)
            return None if gridded and not taken else self.positive
        if isinstance(layer, nn.Linear):
            # The int8 Gemm kernel gives its int32 sums as float32 at no cost: logits and tanh get them whole.
            return None
        # For a convolution there is no such kernel.
        return TANH_GRID if ends and all(self._is(end, _TANH) for end in ends) else self.signed

    def _plan_inputs(self, plans: dict[nn.Module, LayerPlan]) -> None:
        values: dict[fx.Node, _Value] = {}
        inputs: dict[nn.Module, list[_Value]] = {}
        for node in self.nodes:
            arguments = node.all_input_nodes
            source = values[arguments[0]] if arguments else _Value(self.signed)
            layer = self._called(node)
            if node.op == "placeholder":
                values[node] = _Value(self.input_fits)
            elif isinstance(layer, nn.MultiheadAttention) and layer in plans:
                inputs.setdefault(layer, []).extend(values[x] for x in _given(node, "query", "key", "value"))
                values[node] = _Value(self.signed)
            elif isinstance(layer, nn.LSTM) and layer in plans:
                inputs.setdefault(layer, []).extend(values[x] for x in _given(node, "input"))
                hidden = _Value(_HIDDEN)
                states = _Value(self.signed, parts=(hidden, _Value(self.signed)))
                values[node] = _Value(self.signed, parts=(hidden, states))
            elif layer in plans:
                if not isinstance(layer, nn.Embedding):
                    inputs.setdefault(layer, []).append(source)
                output = plans[layer].output
                values[node] = _Value(self.signed) if output is None else _Value(output, layer)
            elif node.target is operator.getitem and source.parts:
                at = node.args[1]
                values[node] = source.parts[at] if isinstance(at, int) else _Value(self.signed)
            elif node.target is operator.getitem:
                values[node] = _Value(source.fits)
            elif self._is(node, _RELU):
                values[node] = _Value(self.positive, source.producer)  # at 0 every grid has a level
            elif self._is(node, _TANH):
                values[node] = _Value(GridPlan(1.0, signed=True, bounded=True))
            elif self._is(node, _SIGMOID):
                values[node] = _Value(GridPlan(1.0, signed=False, bounded=True))
            elif self._is(node, _KEEPS_GRID):
                values[node] = source
            elif self._is(node, _KEEPS_RANGE) and not self._divides_otherwise(node):
                values[node] = _Value(source.fits)
            else:
                values[node] = _Value(self.signed)
        for layer, sources in inputs.items():
            producers = {value.producer for value in sources}
            if (told := _told(layer, "input_range")) is not None:
                plans[layer].input = told
            elif len(producers) == 1 and None not in producers:
                plans[layer].producer = producers.pop()
            else:
                plans[layer].input = functools.reduce(GridPlan.covering, [value.fits for value in sources])

    def _divides_otherwise(self, node: fx.Node) -> bool:
        """Whether a pooling divides its sums by another number than that of their values."""
        layer = self._called(node)
        if layer is not None:
            return getattr(layer, "divisor_override", None) is not None
        return node.target is functional.avg_pool2d and (len(node.args) > 6 or "divisor_override" in node.kwargs)

    def _ends(self, node: fx.Node) -> Iterator[fx.Node]:
        """The first nodes that do more with a value than move it."""
        for user in node.users:
            reads_shape = user.target is getattr and user.args[1] in _SHAPE_ATTRIBUTES
            if reads_shape or self._is(user, _SHAPE_ONLY):
                continue
            if self._is(user, _KEEPS_GRID):
                yield from self._ends(user)
            else:
                yield user

    def _called(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _modules_called_only_at(self, nodes: set[fx.Node]) -> dict[nn.Module, None]:
        """In the order of the graph; none where training may call them elsewhere, unseen."""
        only = (module for module, calls in self.calls.items() if nodes.issuperset(calls))
        return dict.fromkeys(only) if self.all_seen else {}

    def _is(self, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
        if node.op == "call_module":
            return type(self.modules[str(node.target)]) in kinds
        return node.op in ("call_function", "call_method") and node.target in kinds
