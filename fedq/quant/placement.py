"""Decide which grid each layer needs, from the model's graph if torch.fx can trace it. Depends on torch and fx.

It changes nothing: it returns plans, and `swap` applies them. Does not know Opacus or ONNX.
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
    """A grid to create: [-limit, limit] or [0, limit]."""

    limit: float
    signed: bool
    bounded: bool = False  # the values cannot leave the range for any data (tanh, sigmoid)
    is_model_input: bool = False  # for the model's own input
    declared: bool = False  # given by the model's author, so never learned or observed

    @classmethod
    def of_range(cls, range: tuple[float, float]) -> "GridPlan":
        """A grid for a layer's `input_range` or `output_range`: (lowest, highest)."""
        lowest, highest = range
        limit = max(-lowest, highest)
        if not (lowest <= highest and 0 < limit < math.inf):
            raise ValueError(f"a layer's range {range}: must be (lowest, highest), finite, not both 0; fix the model")
        return cls(limit, signed=lowest < 0, declared=True)

    def covering(self, other: "GridPlan") -> "GridPlan":
        """The grid that holds the values of both."""
        return GridPlan(
            max(self.limit, other.limit),
            self.signed or other.signed,
            bounded=self.bounded and other.bounded,
            is_model_input=self.is_model_input or other.is_model_input,
        )


# A convolution's output before a tanh: tanh(4) rounds to 127 / 127, so nothing is lost above 4.
TANH_GRID = GridPlan(4.0, signed=True)


# An LSTM's hidden states, for any initial state: a sigmoid times a tanh. Its cell states have no bound.
_HIDDEN = GridPlan(1.0, signed=True, bounded=True)


@dataclass
class LayerPlan:
    """The grid of one layer's input, and the grids that its output needs."""

    input: GridPlan | None = None  # None: the input uses `producer`'s output grid
    producer: nn.Module | None = None
    output: GridPlan | None = None
    inner: GridPlan | None = None  # attention only: the input of the output projection


@dataclass
class Placement:
    """Plans by layer, in the order of the graph; `absorbed`: ReLUs that a grid replaces."""

    plans: dict[nn.Module, LayerPlan] = field(default_factory=dict)
    absorbed: list[nn.Module] = field(default_factory=list)
    untraceable: str | None = None  # the reason why the model could not be traced


@dataclass(frozen=True)
class _Value:
    """What is known about a tensor: the grid that would hold it, and the layer whose output grid it uses.

    `parts`: the same for each tensor of a tuple.
    """

    fits: GridPlan
    producer: nn.Module | None = None
    parts: "tuple[_Value, ...]" = ()


# Modules, functions and tensor methods, by their effect on values.
_RELU = (nn.ReLU, torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_")
_TANH = (nn.Tanh, torch.tanh, functional.tanh, "tanh", "tanh_")
_SIGMOID = (nn.Sigmoid, torch.sigmoid, functional.sigmoid, "sigmoid", "sigmoid_", nn.Softmax, torch.softmax,
            functional.softmax, "softmax")  # fmt: skip
# These move, drop or select values, so a value on a grid stays on it. Dropout does so in eval mode; in
# training mode it rescales, and its noise is far above the grid's.
_KEEPS_GRID = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Flatten,
    nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, functional.max_pool1d,
    functional.max_pool2d, functional.adaptive_max_pool2d, functional.dropout, functional.dropout2d,
    torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose, "flatten",
    "view", "reshape", "contiguous", "squeeze", "unsqueeze", "permute", "transpose", "clone",
)  # fmt: skip
# Averages: values stay within the range but leave the grid.
_KEEPS_RANGE = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, functional.avg_pool2d,
    functional.adaptive_avg_pool2d, torch.mean, "mean",
)  # fmt: skip
_SHAPE_ONLY = ("size", "dim", "numel")  # these read no values
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")  # `getattr` of these reads no values; .mT does
_WITH_WEIGHTS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


def place(model: nn.Module, layers: list[nn.Module], *, input_range: float, activation_range: float) -> Placement:
    """Plan the grids of `layers` in `model`; if the model cannot be traced, each layer is planned alone.

    A layer that is not used in eval mode gets no plan, because it would not be exported. For the other layers the
    graph of training mode counts as much as the graph of eval mode.
    """
    try:
        delivered = trace(model, training=False)
    except Exception as error:  # a user's forward may raise anything on a proxy
        plans = {layer: _plan_alone(layer, activation_range) for layer in layers}
        return Placement(plans, untraceable=f"{type(error).__name__}: {error}".splitlines()[0])
    try:
        trained = trace(model, training=True)
    except Exception:
        trained = None
    return _Placer(delivered, trained, layers, input_range, activation_range).placement()


def trace(model: nn.Module, *, training: bool) -> fx.GraphModule:
    """The model's graph in one mode. Every torch.nn module is one node; a single layer is wrapped first.

    For random branches the graph has the branch that this call took.
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
    """As fx's tracer, but it enters torch's modules that hold layers, such as an encoder; attention stays one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        holds_layers = any(isinstance(part, _WITH_WEIGHTS) for part in m.modules() if part is not m)
        looked_into = holds_layers and not isinstance(m, _WITH_WEIGHTS)
        return super().is_leaf_module(m, module_qualified_name) and not looked_into


def _plan_alone(layer: nn.Module, activation_range: float) -> LayerPlan:
    """A plan for a layer of which only the type is known."""
    signed = GridPlan(activation_range, signed=True)
    if isinstance(layer, nn.Embedding):
        return LayerPlan()
    return LayerPlan(
        input=_declared_range(layer, "input_range") or signed,
        output=_declared_range(layer, "output_range") or (None if isinstance(layer, nn.Linear | nn.LSTM) else signed),
        inner=signed if isinstance(layer, nn.MultiheadAttention) else None,
    )


def _tensor_arguments(node: fx.Node, *names: str) -> list[fx.Node]:
    """The tensor arguments of a call, by position or by name. A single wrapped layer has only one."""
    given = [node.args[i] if i < len(node.args) else node.kwargs.get(name) for i, name in enumerate(names)]
    return [argument for argument in given if isinstance(argument, fx.Node)]


def _declared_range(layer: nn.Module, name: str) -> GridPlan | None:
    """The range that the model's author set on a layer as `input_range` or `output_range`: a pair of numbers."""
    range = getattr(layer, name, None)
    return None if range is None else GridPlan.of_range(range)


class _Placer:
    """One pass over each graph in the order of computation; `trained`: None if training mode could not be traced."""

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
        self.input_fits = GridPlan(input_range, signed=True, is_model_input=True)
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
        if (declared := _declared_range(layer, "output_range")) is not None:
            return declared
        if isinstance(layer, nn.Embedding | nn.LSTM):
            return None
        if isinstance(layer, nn.MultiheadAttention):
            return self.signed  # for the projections of its input
        if ends and all(self._is(end, _RELU) for end in ends):
            # The grid replaces the ReLU if the ReLU is a module. A function cannot be replaced, and after a grid
            # it would block the gradient of values that round to 0. Then a grid at the readers is better (their
            # kernels' outputs are the same), unless one reader has no grid.
            taken = all(self._called(end) in idle for end in ends)
            readers = [reader for end in ends for reader in self._ends(end)]
            gridded = bool(readers) and all(self._called(reader) in self.layers for reader in readers)
            return None if gridded and not taken else self.positive
        if isinstance(layer, nn.Linear):
            # The int8 Gemm kernel returns its int32 sums as float32 at no cost: logits and tanh get full precision.
            return None
        # Convolutions have no such kernel.
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
                inputs.setdefault(layer, []).extend(values[x] for x in _tensor_arguments(node, "query", "key", "value"))
                values[node] = _Value(self.signed)
            elif isinstance(layer, nn.LSTM) and layer in plans:
                inputs.setdefault(layer, []).extend(values[x] for x in _tensor_arguments(node, "input"))
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
                values[node] = _Value(self.positive, source.producer)  # every grid has a level at 0
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
            if (declared := _declared_range(layer, "input_range")) is not None:
                plans[layer].input = declared
            elif len(producers) == 1 and None not in producers:
                plans[layer].producer = producers.pop()
            else:
                plans[layer].input = functools.reduce(GridPlan.covering, [value.fits for value in sources])

    def _divides_otherwise(self, node: fx.Node) -> bool:
        """Whether a pooling layer divides by another number than the number of summed values."""
        layer = self._called(node)
        if layer is not None:
            return getattr(layer, "divisor_override", None) is not None
        return node.target is functional.avg_pool2d and (len(node.args) > 6 or "divisor_override" in node.kwargs)

    def _ends(self, node: fx.Node) -> Iterator[fx.Node]:
        """The first nodes after `node` that do more than move values."""
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
        """Modules called only at `nodes`, in graph order; none if training mode, which may call them, is unknown."""
        only = (module for module, calls in self.calls.items() if nodes.issuperset(calls))
        return dict.fromkeys(only) if self.all_seen else {}

    def _is(self, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
        if node.op == "call_module":
            return type(self.modules[str(node.target)]) in kinds
        return node.op in ("call_function", "call_method") and node.target in kinds
