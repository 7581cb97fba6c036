"""Batch invariance: an example's gradient must be the same, to the last bit, in every batch.
Knows models, tensors and the parts of a share; not noise, budgets or ledgers.

A matrix kernel may round a row differently if the batch has more rows, or if the row begins at another address. A
server that chooses the weights can enlarge this rounding to any size (2^40 behind a logit of exactly 0). One more
example then changes the shares of all other examples, and the bound on its own share does not cover that. Three
measures prevent it:

- All computations on a batch have public shapes (`microbatches`).
- Rows of matrix products begin at aligned addresses (`aligned_products`).
- Before anything is spent, a probe tests that a row's result does not depend on its place (`is_batch_invariant`). A
  model that fails the probe trains on one example at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedq.per_example import ALIGNED, Recorder, averaged
from fedq.privacy.clipping import unrounded_shares
from fedq.privacy.draws import KeystreamDraws, MadeUpWords
from fedq.privacy.model_validation import device_of, random_weights

Loss = Callable[[Tensor, Tensor], Tensor]


class UnseenDrawsError(ValueError):
    """A layer draws from a generator that the probe can neither see nor replay."""


def microbatch_size(expected: float, sample_rate: float, most: int) -> int:
    """Examples in a microbatch, from public numbers alone: few, equally long microbatches that hold most batches.

    `expected`: expected size of a batch. A Poisson batch exceeds it by two standard deviations in one of 40 steps, and
    then needs one more microbatch. `most`: the limit that memory and caches set, in examples.
    """
    usual = expected + 2 * math.sqrt(expected * (1 - sample_rate))
    parts = max(1, math.ceil(usual / most))
    return max(1, math.ceil(usual / parts))


def microbatches(drawn: np.ndarray, size: int, *, padded: bool = True) -> Iterator[tuple[np.ndarray, int]]:
    """Split `drawn`, indices of shape (n,), into parts of `size`; yield each part and the number of its real rows.

    `padded`: the last part is filled up with repetitions of its own rows; otherwise it is shorter.
    """
    for start in range(0, len(drawn), size):
        part = drawn[start : start + size]
        yield np.resize(part, size) if padded else part, len(part)


class aligned_products(TorchFunctionMode):  # noqa: N801 (a context manager)
    """Inside, the operands of torch.nn.functional.linear are padded with zeros to full SIMD vectors, on both axes.

    Without padding, a row of 3,969 floats begins at an odd address, and MKL's sums then depend on the row's number
    modulo 4 (measured). A single output is a matrix-vector product to MKL, which differs in the same way.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_linear if func is functional.linear else func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    inner, outer = (-size % ALIGNED for size in (weight.shape[1], weight.shape[0]))
    if not (inner or outer):
        return functional.linear(input, weight, bias)
    longer = functional.pad(bias, (0, outer)) if bias is not None else None
    product = functional.linear(functional.pad(input, (0, inner)), functional.pad(weight, (0, inner, 0, outer)), longer)
    return product[..., : weight.shape[0]].contiguous() if outer else product


_probed: WeakKeyDictionary[nn.Module, dict[Any, bool]] = WeakKeyDictionary()


def is_batch_invariant(
    recorder: Recorder,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    size: int,
    clip_norm: float,
    pruned: Mapping[nn.Parameter, Tensor],
    views: int = 1,
    draws_only: bool = False,
) -> bool:
    """Whether an example's share has the same bits at each of `size` places, and beside any other examples.

    The probe uses made-up examples and random weights, so its answer depends neither on the data nor on the server's
    weights: kernels are chosen by shapes, not by values. Of `inputs` and `targets` it reads shapes and dtypes only.

    It compares a batch with the same batch moved by one place, reversed, with every other example replaced, and with
    other random numbers. Random numbers that a layer draws for a whole microbatch, such as for rounding its weights,
    differ between microbatches and are refused. Numbers that it draws for one example, as dropout does, move with that
    example. It is a probe, not a proof: it does not find a kernel that depends on values.

    `draws_only`: test random numbers alone, which floating-point sums need too. Raises UnseenDrawsError.
    """
    model, device = recorder.model, device_of(recorder.model)
    shapes = [(t.shape[1:], t.dtype) for t in (inputs, targets)] + [(p.shape, p.dtype) for p in model.parameters()]
    layouts = [(p.stride(), p.device) for p in model.parameters()]
    key = repr((draws_only, size, views, clip_norm, len(pruned), torch.get_num_threads(), shapes, layouts))
    passed = _probed.setdefault(model, {})
    if key in passed:
        return passed[key]
    wanted = torch.zeros((size * views, *targets.shape[1:]), dtype=targets.dtype, device=device)

    def parts(batch: Tensor, who: np.ndarray, seed: int = 0) -> list[Tensor]:
        with aligned_products(), KeystreamDraws(MadeUpWords(seed), who):
            outputs = model(batch.flatten(0, 1).to(device, inputs.dtype))
            loss(outputs, wanted).backward()  # type: ignore[no-untyped-call]
        return unrounded_shares(averaged(recorder.take(size * views), views), clip_norm, pruned)

    stream, shape = torch.Generator().manual_seed(0), (2, size, views, *inputs.shape[1:])
    floats, tokens = torch.randn(shape, generator=stream), torch.randint(0, 2, shape, generator=stream)
    passed[key] = False
    with random_weights(model, stream):
        # A model of tokens may take floats as inputs, but only whole numbers.
        for batch, replaced in (floats, tokens) if inputs.dtype.is_floating_point else (tokens,):
            try:
                passed[key] = _probe(parts, batch, replaced, draws_only=draws_only)
                break
            except UnseenDrawsError:
                del passed[key]
                raise
            except (IndexError, ValueError, RuntimeError):
                recorder.forget()
    return passed[key]


def _probe(parts: Callable[..., list[Tensor]], batch: Tensor, replaced: Tensor, *, draws_only: bool) -> bool:
    who = np.arange(len(batch))
    others = np.where(who % 2, who + len(who), who)
    unchanged = parts(batch, who)
    if not _close(unchanged, parts(batch, who)):
        raise UnseenDrawsError(
            "the model's gradients differ from one pass to the next under the same random numbers: a layer draws from "
            "a generator of its own, whose state is no secret of this client's; draw with torch in forward, or use "
            "privacy=off"
        )
    if len(batch) == 1:
        return True
    # Random numbers that a layer draws for one example may depend on that example alone.
    drawn_separately = _equal(_every_other(unchanged), _every_other(parts(batch, others, seed=1)))
    moved = [part.roll(-1, 0) for part in parts(batch.roll(1, 0), np.roll(who, 1))]
    if draws_only or not drawn_separately:
        return drawn_separately and _close(unchanged, moved)
    replaced[::2] = batch[::2]
    return (
        all(bool(part.isfinite().all()) for part in unchanged)
        and _equal(unchanged, moved)
        and _equal(unchanged, [part.flip(0) for part in parts(batch.flip(0), who[::-1])])
        and _equal(_every_other(unchanged), _every_other(parts(replaced, others)))
    )


def _close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Equal up to rounding, which on a GPU may differ between passes. Values that are not finite are left out."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.isfinite().all() and b.isfinite().all()]
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()) if a.numel() else 0.0) for a, b in pairs
    )


def _every_other(rows: Sequence[Tensor]) -> list[Tensor]:
    return [part[::2] for part in rows]


def _equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
