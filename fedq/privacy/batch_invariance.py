"""An example's gradient must be the same, to the last bit, in every batch: batches of one public size, and a probe.
Knows models, tensors and what a share is made of; not noise, budgets or ledgers.

A matrix kernel rounds a row otherwise where there are more rows, and some do where a row begins elsewhere in memory.
A server that chooses weights can blow that up to any length (2^40 behind a logit of exactly 0), and then one more
example moves the shares of all others, which no bound on its own share sees. So all that is computed for a batch
has shapes that are public (`in_parts`), rows of matrix products begin at aligned addresses (`aligned_products`), and
whether a row then means the same wherever it stands is tried out before anything is spent (`alike`). Who fails that
trains on one example at a time, where there is nobody beside it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedq.per_example import ALIGNED, Recorder, averaged
from fedq.privacy.clipping import made_of
from fedq.privacy.draws import KeystreamDraws, MadeUpWords
from fedq.privacy.model_validation import device_of

Loss = Callable[[Tensor, Tensor], Tensor]


class UnseenDrawsError(ValueError):
    """A layer draws from a generator that nobody here can see or replay."""


def rows_at_once(expected: float, sample_rate: float, most: int) -> int:
    """Examples in a part of a batch, by public numbers alone: as few parts as hold most batches, all equally long.

    `expected`: size of a batch; a Poisson batch exceeds it by two standard deviations in one of 40 steps, and then
    needs a part more. `most`: what memory and caches allow.
    """
    usual = expected + 2 * math.sqrt(expected * (1 - sample_rate))
    parts = max(1, math.ceil(usual / most))
    return max(1, math.ceil(usual / parts))


def in_parts(drawn: np.ndarray, size: int, *, padded: bool = True) -> Iterator[tuple[np.ndarray, int]]:
    """`drawn`, indices of shape (n,), in parts of `size`, each with how many of it count.

    `padded`: the last one is filled up with its own; else it is as long as it is.
    """
    for start in range(0, len(drawn), size):
        part = drawn[start : start + size]
        yield np.resize(part, size) if padded else part, len(part)


class aligned_products(TorchFunctionMode):  # noqa: N801 (a context manager)
    """Within, what torch.nn.functional.linear multiplies is lengthened with zeros to whole vectors, both ways.

    MKL begins a row of 3,969 floats otherwise at an odd address: seen, its sums differ by the row's number modulo 4.
    A single output is a product of a matrix and a vector to it, and differs in the same way.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_linear if func is functional.linear else func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    inner, outer = (-side % ALIGNED for side in (weight.shape[1], weight.shape[0]))
    if not (inner or outer):
        return functional.linear(input, weight, bias)
    longer = functional.pad(bias, (0, outer)) if bias is not None else None
    product = functional.linear(functional.pad(input, (0, inner)), functional.pad(weight, (0, inner, 0, outer)), longer)
    return product[..., : weight.shape[0]].contiguous() if outer else product


_known: WeakKeyDictionary[nn.Module, dict[Any, bool]] = WeakKeyDictionary()


def alike(
    recorder: Recorder,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    size: int,
    clip_norm: float,
    pruned: Mapping[nn.Parameter, Tensor],
    views: int = 1,
    by_seed_alone: bool = False,
) -> bool:
    """Whether an example's share is the same to the bit at all `size` places, and beside any others.

    Made-up examples and random weights, so that nothing depends on the data or on what a server sent: kernels are
    chosen by shapes, not by values. Looks at shapes and dtypes of `inputs` and `targets` only. A batch goes through
    as it is, moved by one place, reversed, with every other example replaced, and with other random numbers: what a
    layer draws for all of a part, as rounding of its weights, would tell one part from the next. What it draws for one
    example, as dropout does, moves with that example. A probe, not a proof: it cannot see a kernel that looks at
    values. `by_seed_alone`: whether it is the same with other random numbers, which floating-point sums need too.
    """
    model, device = recorder.model, device_of(recorder.model)
    shapes = [(t.shape[1:], t.dtype) for t in (inputs, targets)] + [(p.shape, p.dtype) for p in model.parameters()]
    layouts = [(p.stride(), p.device) for p in model.parameters()]
    key = repr((by_seed_alone, size, views, clip_norm, len(pruned), torch.get_num_threads(), shapes, layouts))
    found = _known.setdefault(model, {})
    if key in found:
        return found[key]
    wanted = torch.zeros((size * views, *targets.shape[1:]), dtype=targets.dtype, device=device)

    def parts(batch: Tensor, who: np.ndarray, seed: int = 0) -> list[Tensor]:
        with aligned_products(), KeystreamDraws(MadeUpWords(seed), who):
            outputs = model(batch.flatten(0, 1).to(device, inputs.dtype))
            loss(outputs, wanted).backward()  # type: ignore[no-untyped-call]
        return made_of(averaged(recorder.take(size * views), views), clip_norm, pruned)

    stream, shape = torch.Generator().manual_seed(0), (2, size, views, *inputs.shape[1:])
    floats, tokens = torch.randn(shape, generator=stream), torch.randint(0, 2, shape, generator=stream)
    found[key] = False
    with _random_weights(model, stream):
        # A model may read token numbers off floats, and then takes no others.
        for batch, replaced in (floats, tokens) if inputs.dtype.is_floating_point else (tokens,):
            try:
                found[key] = _tried(parts, batch, replaced, by_seed_alone=by_seed_alone)
                break
            except UnseenDrawsError:
                del found[key]
                raise
            except (IndexError, ValueError, RuntimeError):
                recorder.forget()
    return found[key]


def _tried(parts: Callable[..., list[Tensor]], batch: Tensor, replaced: Tensor, *, by_seed_alone: bool) -> bool:
    who = np.arange(len(batch))
    others = np.where(who % 2, who + len(who), who)
    as_it_is = parts(batch, who)
    if not _close(as_it_is, parts(batch, who)):
        raise UnseenDrawsError(
            "the model's gradients differ from one pass to the next under the same random numbers: a layer draws from "
            "a generator of its own, whose state is no secret of this client's; draw with torch in forward, or use "
            "privacy=off"
        )
    if len(batch) == 1:
        return True
    # What a layer draws for one example may change with that example, and no more than that.
    drawn_apart = _equal(_every_other(as_it_is), _every_other(parts(batch, others, seed=1)))
    moved = [part.roll(-1, 0) for part in parts(batch.roll(1, 0), np.roll(who, 1))]
    if by_seed_alone or not drawn_apart:
        return drawn_apart and _close(as_it_is, moved)
    replaced[::2] = batch[::2]
    return (
        all(bool(part.isfinite().all()) for part in as_it_is)
        and _equal(as_it_is, moved)
        and _equal(as_it_is, [part.flip(0) for part in parts(batch.flip(0), who[::-1])])
        and _equal(_every_other(as_it_is), _every_other(parts(replaced, others)))
    )


def _close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """But for rounding, which on a GPU may differ from pass to pass; what is not finite says nothing here."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.isfinite().all() and b.isfinite().all()]
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()) if a.numel() else 0.0) for a, b in pairs
    )


def _every_other(rows: Sequence[Tensor]) -> list[Tensor]:
    return [part[::2] for part in rows]


def _equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@contextmanager
def _random_weights(model: nn.Module, stream: torch.Generator) -> Iterator[None]:
    """Public ones for a while, of a size at which signals neither die nor explode."""
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
