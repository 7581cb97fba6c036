"""Record one model's layers for a while, so that a backward pass gives each example's gradients.

Depends on modules, autograd and Opacus' hooks; not on the formulas of a layer type, clipping or noise.

A recorded layer computes as always, with its own parameters held constant, followed by a node in autograd's graph.
In the backward pass the node gives input and gradient to the layer's sampler. So the batch's ordinary parameter
gradients, which DP-SGD does not need, are never computed, nothing is compiled, and any batch size is possible. Opacus'
hooks are used for layers of other types, for layers that share a parameter with such a layer, and for all layers
inside a module that Opacus differentiates as a whole; the results are merged.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedq.per_example.contributions import Contribution, Dense, merged
from fedq.per_example.layers import SAMPLERS

_NAMES = {"weight", "bias", "log_range"}  # parameters that samplers support; torch's weight_norm adds others


class _Tap(torch.autograd.Function):
    """The identity, in place; passes the gradient to `take`. `anchor` makes autograd visit a model's first layer."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, anchor: Tensor, take: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.mark_dirty(y)
        ctx.save_for_backward(x)  # so that autograd raises if the tensor is changed in place
        ctx.take = take
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            ctx.take(x.detach(), grads[0])
        return grads[0], None, None, None


class Recorder:
    """The per-example gradients of a model's backward passes since the last `take`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._found: list[Contribution] = []
        self._watched: set[nn.Parameter] = set()

    def watch(self, layer: nn.Module) -> Callable[[], None]:
        """Start to record one layer; call the result to stop."""
        plain, sampler = layer.forward, SAMPLERS[type(layer)]
        parameters = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        self._watched |= set(parameters)
        anchor = torch.zeros((), device=parameters[0].device, requires_grad=True)

        def take(x: Tensor, grad: Tensor) -> None:
            self._found += sampler(layer, x, grad)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not (layer.training and torch.is_grad_enabled()):
                return plain(*args, **kwargs)
            (x,) = (*args, *kwargs.values())
            for parameter in parameters:
                parameter.requires_grad_(False)
            try:
                y = plain(x)
            finally:
                for parameter in parameters:
                    parameter.requires_grad_(True)
            return _Tap.apply(y, x, anchor, take)  # type: ignore[no-untyped-call]

        layer.forward = forward  # on the object, so that the class does not change
        return partial(delattr, layer, "forward")

    def forget(self) -> None:
        """Discard what an interrupted pass has left."""
        self._found = []
        for parameter in self.model.parameters():
            parameter.grad = None
            parameter.__dict__.pop("grad_sample", None)

    def take(self, examples: int) -> list[Contribution]:
        """One contribution for each parameter in use; ValueError if one has another number of examples."""
        found, self._found = self._found, []
        for name, parameter in self.model.named_parameters():
            samples: Tensor | None = getattr(parameter, "grad_sample", None)  # set by Opacus
            if samples is not None:
                parameter.grad_sample = None  # type: ignore[attr-defined]
                found.append(Dense(parameter, samples.flatten(1)))
            elif parameter in self._watched and parameter.grad is not None:
                raise ValueError(
                    f"parameter {name} is used outside of its layer, so it has no per-example gradients; "
                    "share the layer or its parameter (b.weight = a.weight), or use privacy=off"
                )
            parameter.grad = None  # an unclipped sum, which must never reach an optimizer
        for contribution in found:
            _check_rows(contribution.examples, examples)
        return merged(found)


@contextmanager
def recorded(model: nn.Module) -> Iterator[Recorder]:
    """Record all trained layers, in training mode; everything is undone afterwards, also after an error.

    ValueError for a model that neither fedq nor Opacus can differentiate per example.
    """
    was_training = {module: module.training for module in model.modules()}
    left = left_to_opacus(model)
    recorder = Recorder(model)
    with ExitStack() as stack:
        stack.callback(_clean, model, was_training)
        model.train()
        for layer in _trained(model):
            if layer not in left:
                stack.callback(recorder.watch(layer))
        if left:
            _refuse_channels_last(model, left)
            stack.enter_context(_opacus_hooks(model, left))
        yield recorder


def left_to_opacus(model: nn.Module) -> set[nn.Module]:
    """Layers with trained parameters of their own that this module does not record."""
    left: set[nn.Module] = set()
    _walk(model, left)
    # Layers that share a parameter with an Opacus layer go to Opacus too: gradients must be added before any norm.
    while True:
        theirs = {p for layer in left for p in layer.parameters(recurse=False)}
        more = {m for m in _trained(model) if m not in left and any(p in theirs for p in m.parameters(recurse=False))}
        if not more:
            return left
        left |= more


def _walk(module: nn.Module, left: set[nn.Module]) -> None:
    if _has_trained(module) and not _recordable(module):
        left |= set(_trained(module))  # Opacus' hooks count the uses of all parameters inside a module
        return
    for child in module.children():
        _walk(child, left)


def _trained(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if _has_trained(module)]


def _has_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))


def _recordable(layer: nn.Module) -> bool:
    """Whether the layer has a known type and its own forward, without parametrizations."""
    names = {name for name, _ in layer.named_parameters(recurse=False)}
    return type(layer) in SAMPLERS and names <= _NAMES and "forward" not in layer.__dict__


@contextmanager
def _opacus_hooks(model: nn.Module, layers: set[nn.Module]) -> Iterator[None]:
    from opacus import GradSampleModule

    class OfSome(GradSampleModule):  # type: ignore[misc]
        def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
            return (m for m in super().iterate_submodules(module) if m in layers)

    try:
        # strict=False: Opacus refuses any buffer. Constant buffers are harmless; DP-SGD checks that they are constant.
        OfSome(model, loss_reduction="sum", strict=False)
    except NotImplementedError as error:
        raise ValueError(
            f"Opacus has no per-example gradients for this model: {error}; keep buffers in layers of their own"
        ) from error
    with warnings.catch_warnings():
        # The first layer's input needs no gradient; Opacus' hooks use the gradient of its output only.
        warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
        yield


def _clean(model: nn.Module, was_training: dict[nn.Module, bool]) -> None:
    # Not to_standard_module(): there is no wrapper if its constructor failed, and after an error between forward
    # and backward pass it does not remove everything.
    for handle in model.__dict__.pop("autograd_grad_sample_hooks", ()):
        handle.remove()
    for parameter in model.parameters():
        parameter.grad = None
        for leftover in ("grad_sample", "_forward_counter", "_current_grad_sample", "_norm_sample"):
            parameter.__dict__.pop(leftover, None)
    for module, training in was_training.items():
        for leftover in ("activations", "max_batch_len", "ft_compute_sample_grad"):
            module.__dict__.pop(leftover, None)
        module.training = training


def _check_rows(rows: int, examples: int) -> None:
    if rows != examples:
        raise ValueError(
            f"a layer has per-example gradients for {rows} examples in a batch of {examples}: its input must "
            "have the examples on axis 0, so that each whole example is clipped; put the batch axis first "
            "(batch_first=True), or use privacy=off"
        )


def _refuse_channels_last(model: nn.Module, layers: set[nn.Module]) -> None:
    for name, module in model.named_modules():
        if module in layers and type(module) is nn.Conv2d and not module.weight.is_contiguous():
            raise ValueError(
                f"layer {name or 'model'} is in channels_last format, where Opacus' per-example gradients of Conv2d "
                "are wrong; use model.to(memory_format=torch.contiguous_format)"
            )
