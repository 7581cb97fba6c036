"""Random numbers that layers draw in a private step, such as dropout masks, taken from a keystream.
Knows torch's operations and words of a keystream; not layers, gradients, budgets or data.

torch's own CPU generator keeps 32 bits of any seed. An adversary can try all 2^32 masks, and with the right mask one
noised sum reveals far more than epsilon allows. Inside `KeystreamDraws` no operation reaches that generator: each
operation that torch tags as random is answered from words of a source with a 256-bit key. An unknown random operation
is an error.

Rows that belong to an example are drawn for that example. A keystream gives every row fresh words anyway. A probe or an
auditor replays randomness, and gives an example the same words at every place in a batch.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedq.core.compiler import run_eagerly

aten = torch.ops.aten
_RANDOM: Final = torch.Tag.nondeterministic_seeded
# Bits of a word that make a uniform number below 1 in each type; the same as in torch's own generator.
_DIGITS: Final = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


class Words(Protocol):
    """A source of random 64-bit words."""

    def words(self, count: int) -> np.ndarray:
        """uint64 (count,), shared by all examples."""

    def words_of(self, examples: np.ndarray, each: int) -> np.ndarray:
        """uint64 (len(examples), each): `each` words for every example, by its index in the shard."""


class KeystreamDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own hook of subclasses
    """Inside, random operations of torch are answered from `source`; ValueError for an unknown operation.

    `examples`: indices of the examples in the batch, in order. An axis holds rows of examples if it is as long as the
    batch, or if it is the first axis and a multiple of that (several augmentations or heads of each example).
    """

    def __init__(self, source: Words, examples: Sequence[int] | np.ndarray = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._source, self.examples = source, np.asarray(examples)
        self.answered = 0  # operations so far

    def of(self, examples: Sequence[int] | np.ndarray) -> "KeystreamDraws":
        """Set the examples of the next batch; returns itself."""
        self.examples = np.asarray(examples)
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _RANDOM not in func.tags:
            return func(*args, **(kwargs or {}))
        if func not in _ANSWERS:
            raise ValueError(
                f"the model draws by {func}, which fedq cannot take from a secret keystream, and torch's own "
                "generator keeps 32 bits; use dropout, torch.rand, randn, randint or bernoulli instead, or privacy=off"
            )
        self.answered += 1
        return _ANSWERS[func](self, *args, **(kwargs or {}))

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """Uniform numbers of `shape` in [0, 1), on the CPU: multiples of 2^-53 (float32: 2^-24)."""
        digits = _DIGITS[dtype]
        values = (self._words(tuple(shape)) >> np.uint64(64 - digits)).astype(np.float64) * 2.0**-digits
        return torch.from_numpy(np.asarray(values)).to(dtype)

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Standard normals by Box-Muller."""
        radius, angle = self.uniform(shape), self.uniform(shape)
        return ((-2 * torch.log1p(-radius)).sqrt() * (2 * math.pi * angle).cos()).to(dtype)

    def _words(self, shape: tuple[int, ...]) -> np.ndarray:
        count, axis = len(self.examples), self._axis(shape)
        if axis is None:
            return self._source.words(math.prod(shape)).reshape(shape)
        if axis == 0:
            return self._source.words_of(self.examples, math.prod(shape) // count).reshape(shape)
        others = (*shape[:axis], *shape[axis + 1 :])
        return np.moveaxis(self._source.words_of(self.examples, math.prod(others)).reshape(count, *others), 0, axis)

    def _axis(self, shape: tuple[int, ...]) -> int | None:
        """The axis of the examples; None: they share the random numbers. `is_batch_invariant` tests this."""
        count = len(self.examples)
        if not count or not math.prod(shape):
            return None
        if shape and shape[0] % count == 0:
            return 0
        return shape.index(count) if count in shape else None


run_eagerly(KeystreamDraws.__torch_dispatch__)


class MadeUpWords:
    """Public words for a probe: those of an example do not depend on its place; shared ones depend on the seed."""

    def __init__(self, seed: int) -> None:
        self._shared = np.random.Generator(np.random.Philox(key=seed))
        self._calls = 0

    def words(self, count: int) -> np.ndarray:
        return self._shared.integers(0, 2**64, count, dtype=np.uint64)

    def words_of(self, examples: np.ndarray, each: int) -> np.ndarray:
        self._calls += 1
        streams = (np.random.Generator(np.random.Philox(key=[int(i), self._calls])) for i in examples)
        return np.stack([stream.integers(0, 2**64, each, dtype=np.uint64) for stream in streams])


class GlobalGenerators:
    """The states of the process-wide generators, to find out whether a model drew from them."""

    def __init__(self, *devices: torch.device) -> None:
        self._devices = tuple(device for device in devices if device.type == "cuda")
        self._before = self._states()

    def used(self) -> list[str]:
        """Names of the generators whose state changed."""
        return [name for name, state in self._states().items() if not _same(state, self._before[name])]

    def _states(self) -> dict[str, Any]:
        states: dict[str, Any] = {"torch": torch.get_rng_state(), "numpy": np.random.get_state()}
        return states | {f"torch on {device}": torch.cuda.get_rng_state(device) for device in self._devices}


def refuse_shared_generators(work: Callable[[], None], *devices: torch.device) -> None:
    """ValueError if `work`, a pass over made-up examples, draws from a process-wide generator."""
    shared = GlobalGenerators(*devices)
    used = ["python"] * _python_draws(work) + shared.used()
    if used:
        raise ValueError(
            f"the model draws from {used[0]}'s own generator, whose state is no secret of this client's; "
            "draw with torch in forward (dropout, torch.rand, randn), where fedq draws in secret, or use privacy=off"
        )


def _python_draws(work: Callable[[], None], *, tries: int = 3) -> bool:
    """Whether every one of `tries` draws from Python's generator: a single draw may be another thread's."""
    for _ in range(tries):
        before = random.getstate()
        work()
        if random.getstate() == before:
            return False
    return True


def _same(state: Any, other: Any) -> bool:
    if isinstance(state, Tensor):
        return torch.equal(state, other)
    return all(np.array_equal(a, b) for a, b in zip(state, other, strict=True))


# --- torch's random operations: their arguments as torch declares them -----------------------------------------------


def _bernoulli(draws: KeystreamDraws, like: Tensor, chance: Any) -> Tensor:
    if isinstance(chance, Tensor):
        chance = chance.detach().double().cpu()
    drawn: Tensor = draws.uniform(like.shape) < chance
    return drawn.to(like.device, like.dtype)


def _native_dropout(draws: KeystreamDraws, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if not train:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = (draws.uniform(x.shape) >= p).to(x.device)
    return x.mul(kept).mul_(0.0 if p == 1 else 1 / (1 - p)), kept


def _made(values: Tensor, dtype: torch.dtype | None, device: Any) -> Tensor:
    return values.to(device=device, dtype=dtype or torch.get_default_dtype())


def _type(dtype: torch.dtype | None) -> torch.dtype:
    return dtype or torch.get_default_dtype()


def _rand(draws: KeystreamDraws, size: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return _made(draws.uniform(size, _type(dtype)), dtype, device)


def _randn(draws: KeystreamDraws, size: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return _made(draws.normal(size, _type(dtype)), dtype, device)


def _integers(draws: KeystreamDraws, low: int, high: int, size: Any, dtype: Any, device: Any) -> Tensor:
    values = (draws.uniform(size) * (high - low)).floor() + low  # probabilities are off by less than (high - low) 2^-53
    return values.to(device=device, dtype=dtype or torch.int64)


def _randint(draws: KeystreamDraws, high: int, size: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return _integers(draws, 0, high, size, dtype, device)


def _randint_low(
    draws: KeystreamDraws, low: int, high: int, size: Any, *, dtype: Any = None, device: Any = None, **_: Any
) -> Tensor:
    return _integers(draws, low, high, size, dtype, device)


def _uniform_(draws: KeystreamDraws, x: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    return x.copy_(low + (high - low) * draws.uniform(x.shape, x.dtype))


def _normal_(draws: KeystreamDraws, x: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return x.copy_(mean + std * draws.normal(x.shape, x.dtype))


def _exponential_(draws: KeystreamDraws, x: Tensor, rate: float = 1.0, **_: Any) -> Tensor:
    return x.copy_(-torch.log1p(-draws.uniform(x.shape)) / rate)


def _normal(draws: KeystreamDraws, mean: Any, std: Any, size: Any = None, *, dtype: Any = None, **_: Any) -> Tensor:
    given = [value for value in (mean, std) if isinstance(value, Tensor)]
    shape = np.broadcast_shapes(*(value.shape for value in given)) if given else size
    device, wanted = (given[0].device, given[0].dtype) if given else (None, _type(dtype))
    values: Tensor = mean + std * draws.normal(shape, wanted).to(device)
    return values


def _rrelu(draws: KeystreamDraws, x: Tensor, noise: Tensor, low: float, high: float, train: bool, *_: Any) -> Tensor:
    slope = low + (high - low) * draws.uniform(x.shape, x.dtype).to(x.device) if train else (low + high) / 2
    noise.copy_(torch.where(x < 0, slope, 1.0))  # the factor of the backward pass
    return x * noise


def _like(made: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn an operation with a size argument into its `_like` form: shape, type and device of another tensor."""

    def of(draws: KeystreamDraws, x: Tensor, *limits: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
        return made(draws, *limits, x.shape, dtype=dtype or x.dtype, device=device or x.device)

    return of


_ANSWERS: Final[dict[Any, Callable[..., Any]]] = {
    aten.bernoulli.default: lambda draws, x, **_: _bernoulli(draws, x, x),
    aten.bernoulli.p: lambda draws, x, p, **_: _bernoulli(draws, x, p),
    aten.bernoulli_.float: lambda draws, x, p=0.5, **_: x.copy_(_bernoulli(draws, x, p)),
    aten.bernoulli_.Tensor: lambda draws, x, p, **_: x.copy_(_bernoulli(draws, x, p)),
    aten.native_dropout.default: _native_dropout,
    aten.rand.default: _rand,
    aten.rand.generator: _rand,
    aten.rand_like.default: _like(_rand),
    aten.randn.default: _randn,
    aten.randn.generator: _randn,
    aten.randn_like.default: _like(_randn),
    aten.randint.default: _randint,
    aten.randint.generator: _randint,
    aten.randint.low: _randint_low,
    aten.randint.low_generator: _randint_low,
    aten.randint_like.default: _like(_randint),
    aten.randint_like.low_dtype: _like(_randint_low),
    aten.uniform_.default: _uniform_,
    aten.normal_.default: _normal_,
    aten.normal.float_float: _normal,
    aten.normal.float_Tensor: _normal,
    aten.normal.Tensor_float: _normal,
    aten.normal.Tensor_Tensor: _normal,
    aten.exponential_.default: _exponential_,
    aten.rrelu_with_noise.default: _rrelu,
}
