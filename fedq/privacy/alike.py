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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedq.per_example import Recorder, averaged
from fedq.privacy.clipping import made_of
from fedq.privacy.suitable import device_of
from fedq.seeding import seeded

Loss = Callable[[Tensor, Tensor], Tensor]

_ALIGNED = 16  # float32 values: 64 bytes, the widest vector of today's CPUs
_DROPOUTS = {
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    torch.dropout,
}


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
    """Within, rows of what torch.nn.functional.linear takes are lengthened with zeros to whole vectors.

    MKL begins a row of 3,969 floats otherwise at an odd address: seen, its sums differ by the row's number modulo 4.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            x, weight, *bias = args
            missing = -x.shape[-1] % _ALIGNED
            if missing:
                args = (functional.pad(x, (0, missing)), functional.pad(weight, (0, missing)), *bias)
        return func(*args, **(kwargs or {}))


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
) -> bool:
    """Whether an example's share is the same to the bit at all `size` places, and beside any others.

    Made-up examples and random weights, so that nothing depends on the data or on what a server sent: kernels are
    chosen by shapes, not by values. Looks at shapes and dtypes of `inputs` and `targets` only. Dropout, whose masks
    differ by place and are secret, is left out. A probe, not a proof: it cannot see a kernel that looks at values.
    """
    model = recorder.model
    key = (size, views, clip_norm, inputs.shape[1:], inputs.dtype, targets.shape[1:], targets.dtype, len(pruned),
           torch.get_num_threads(), [(p.shape, p.stride(), p.device, p.dtype) for p in model.parameters()])  # fmt: skip
    found = _known.setdefault(model, {})
    if repr(key) not in found:
        found[repr(key)] = _tried(recorder, loss, inputs, targets, size, clip_norm, pruned, views)
    return found[repr(key)]


def _tried(
    recorder: Recorder,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    size: int,
    clip_norm: float,
    pruned: Mapping[nn.Parameter, Tensor],
    views: int,
) -> bool:
    model, stream = recorder.model, torch.Generator().manual_seed(0)
    device = device_of(model)
    wanted = torch.zeros((size * views, *targets.shape[1:]), dtype=targets.dtype, device=device)

    def parts(seen: Tensor) -> list[Tensor]:
        with seeded(0, device), aligned_products(), _without_dropout():
            loss(model(seen.flatten(0, 1).to(device, inputs.dtype)), wanted).backward()  # type: ignore[no-untyped-call]
        return made_of(averaged(recorder.take(size * views), views), clip_norm, pruned)

    shape = (size, views, *inputs.shape[1:])
    floats = torch.randn(shape, generator=stream)
    tokens = torch.randint(0, 2, shape, generator=stream)
    with _random_weights(model, stream):
        for made_up in (floats, tokens) if inputs.dtype.is_floating_point else (tokens,):
            # A model may read token numbers off floats, and then takes no others.
            with suppress(IndexError, ValueError, RuntimeError):
                one, place = made_up[:1], size // 2
                everywhere = parts(one.expand(shape).contiguous())
                beside = parts(torch.cat([made_up[1 : place + 1], one, made_up[place + 1 :]]))
                return all(
                    bool(same.isfinite().all() and (same == same[:1]).all() and torch.equal(same[0], other[place]))
                    for same, other in zip(everywhere, beside, strict=True)
                )
            recorder.forget()
    return False


class _without_dropout(TorchFunctionMode):  # noqa: N801
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


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
