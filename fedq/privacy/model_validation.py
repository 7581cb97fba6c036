"""Model validation: checks that a model and a loss treat each example separately, as DP-SGD requires.
Knows layers, buffers and a loss; not clipping, noise, budgets or data.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from fedq.privacy.draws import KeystreamDraws, MadeUpWords, refuse_shared_generators

_passed: WeakKeyDictionary[nn.Module, set[Any]] = WeakKeyDictionary()


def check_separate_examples(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> None:
    """ValueError unless model and loss treat each example separately. Of the data only shapes and dtypes are read.

    Once for each model object, loss and shape, with the given weights and with public random ones: whether a layer
    mixes examples is a property of its code, and with weights that a server chose it might not show. Where random
    weights give no finite output, nothing is learned from them, so the check is repeated in every fit.
    """
    key = fit_key(model, loss, inputs, targets)
    passed = _passed.setdefault(model, set())
    if key in passed:
        return
    refuse_cross_example_layers(model)
    shape = tuple(inputs.shape[1:])
    refuse_mixing(model, shape, inputs.dtype)
    check_loss_sums(model, loss, inputs, targets)
    with random_weights(model, torch.Generator().manual_seed(0)):
        if refuse_mixing(model, shape, inputs.dtype, finite_only=True):
            passed.add(key)


def fit_key(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Any:
    """What a check of a model's code depends on, beside the model object: its layers, the loss, shapes and dtypes."""
    layers = tuple((type(module), module.training) for module in model.modules())
    parameters = tuple((p.requires_grad, p.shape, p.dtype, p.device) for p in model.parameters())
    return (loss, layers, parameters, *((t.shape[1:], t.dtype) for t in (inputs, targets)))


def refuse_cross_example_layers(model: nn.Module) -> None:
    """ValueError for a layer in which one example influences the gradient of another."""
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    for name, module in model.named_modules():
        tracks = isinstance(module, _InstanceNorm) and module.track_running_stats
        # _InstanceNorm derives from a common parent of _BatchNorm, not from it.
        if isinstance(module, _BatchNorm) or tracks:
            raise ValueError(
                f"layer {name or 'model'} is {type(module).__name__}: it mixes the examples of a "
                "batch, so no example's share can be bounded; use GroupNorm in its place, or privacy=off"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise ValueError(
                f"layer {name or 'model'} has max_norm={module.max_norm:g}: it rescales the rows that examples look up "
                "while they are looked up, without noise; leave max_norm out, or use privacy=off"
            )


def check_loss_sums(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor
) -> None:
    """ValueError unless the loss of two equal made-up examples is twice the loss of one. Reads shapes, not data."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            device = device_of(model)
            output = model(torch.zeros((1, *inputs.shape[1:]), dtype=inputs.dtype, device=device))
            target = torch.zeros((1, *targets.shape[1:]), dtype=targets.dtype, device=device)
            one = loss(output, target)
            two = loss(torch.cat([output, output]), torch.cat([target, target]))
    finally:
        for module, training in was_training.items():
            module.training = training
    if one.dim() or not torch.isclose(two, 2 * one, rtol=1e-3, atol=1e-12):
        raise ValueError(
            f"the loss of two equal examples is {two.tolist()}, of one {one.tolist()}: under DP the loss "
            "must SUM over the batch (in a mean each example's share depends on others); use reduction='sum'"
        )


def refuse_mixing(
    model: nn.Module,
    input_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    training: bool = True,
    finite_only: bool = False,
) -> bool:
    """ValueError if one made-up example changes the output for another: then no example's share can be bounded.

    `dtype`: of the inputs; `training`: test the model in train mode, else in eval mode. True if the outputs were
    finite; with `finite_only` outputs that are not are no error.

    It is a probe, not a proof: it finds `x - x.mean(0)`, but not a layer that mixes examples only for certain values.
    Where the inputs are token numbers (a model may also take them as floats), it tries 0 and 1.
    """
    before = untrained_state(model)
    was_training = {module: module.training for module in model.modules()}
    # Public numbers, but not from torch: in a private fit every random operation of torch must be secret.
    stream = np.random.Generator(np.random.Philox(key=0))
    alone, other, another = torch.from_numpy(stream.standard_normal((3, 1, *input_shape), dtype=np.float32))
    tokens = [torch.cat([(alone > 0).float(), torch.full_like(alone, number)]) for number in (0, 1)]
    batches = [torch.cat([alone, other]), torch.cat([alone, 9 * another])] if dtype.is_floating_point else tokens
    device = device_of(model)

    def first_of(batch: Tensor) -> Tensor:
        with torch.no_grad(), KeystreamDraws(MadeUpWords(0), range(2)):  # dropout must draw the same masks twice
            return model(batch.to(device, dtype))[0].clone()  # type: ignore[no-any-return]

    def one_pass() -> None:
        with suppress(Exception):  # a model of tokens may refuse floats; the error is reported below
            first_of(batches[0])

    try:
        model.train(training)
        refuse_shared_generators(one_pass, device)
        try:
            outputs = [first_of(batch) for batch in batches]
        except Exception:
            if batches is tokens:
                raise
            outputs = [first_of(batch) for batch in tokens]
    except Exception as error:
        raise ValueError(f"the model cannot be tried out on made-up examples: {error}") from error
    finally:
        restore(model, before)
        for module, training in was_training.items():
            module.training = training
    finite = all(bool(output.isfinite().all()) for output in outputs)
    if (finite or not finite_only) and not torch.allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-6):
        raise ValueError(
            "the model mixes the examples of a batch (the output for one changes with another), so no example's share "
            "can be bounded; compute each example's output from that example alone, or use privacy=off"
        )
    return finite


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters; the CPU for a model without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def untrained_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that training must not change: each buffer, and each parameter that is not trained."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return {name: tensor.detach().clone() for name, tensor in {**frozen, **dict(model.named_buffers())}.items()}


def restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Write the copy of `untrained_state` back into the model."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in state.items():
            held[name].copy_(tensor)


def check_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    """ValueError if training changed a value that is not trained: it holds statistics of the data, without noise.

    The values are restored first, because the next client uses the same module.
    """
    after = untrained_state(model)
    moved = [name for name in after if name not in before or not torch.equal(after[name], before[name])]
    restore(model, before)
    if moved:
        raise ValueError(
            f"buffer {moved[0]} changed during private training: it holds statistics of the data, "
            "without noise; use GroupNorm, or quant.activations=learned or fixed"
        )


@contextmanager
def random_weights(model: nn.Module, stream: torch.Generator) -> Iterator[None]:
    """Inside, the trained weights are public random ones, scaled so that activations keep their size."""
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    with torch.no_grad():
        try:
            for p in trained:
                fan_in = p[0].numel() if p.dim() > 1 else 1
                p.copy_(torch.randn(p.shape, generator=stream) / math.sqrt(fan_in))
            with torch.enable_grad():
                yield
        finally:
            for p, values in zip(trained, before, strict=True):
                p.copy_(values)
