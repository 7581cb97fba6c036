"""Whether what a private fit draws is secret: batches, noise, masks and views. Knows answers and generators.

A guarantee assumes that nobody can compute the random numbers again. Seeds, round numbers and identities are public, 32
bits are searched in minutes, and generators of the process are everybody's. So all of it has to come from the client's
own source, and an auditor who replays that source sees whether it does.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedq.audit.findings import Check
from fedq.audit.sources import Replayed
from fedq.audit.subject import Answer, Subject
from fedq.audit.tails import binomial_at_least, sum_of_squares_below
from fedq.data import Examples
from fedq.training import Recipe, Trainer, layout_of, read_vector

LEAST_BITS = 128  # behind any random number; fewer can be searched
EXAMPLES = 12  # of a shard whose answers are replayed
COINS, CLIENTS, ROUNDS, STEPS = 1024, 4, 2, 2  # whose batches are watched: 16,384 coins
_WORDS = 2048  # of each stream; that two of 12,288 words of 64 bits are equal has a probability of 4e-12
_LEAST_VARIANCE = 5.0  # of a batch's size: below it is no normal number
_GLOBAL = ("torch", "numpy", "python")


def secrecy_checks(subject: Subject, examples: Examples, *, rng: np.random.Generator) -> list[Check]:
    """Three checks; `examples`: any of the data."""
    shard = examples[rng.choice(len(examples), min(EXAMPLES, len(examples)), replace=False)]
    with _generators_kept():
        return [_coins(subject), _keystream(subject, shard, seed=int(rng.integers(2**62))), _streams(subject)]


def _coins(subject: Subject) -> Check:
    """Who is in which batch, seen at the model's input: independent coins of the claimed rate, anew each time."""
    rate = subject.plan.sample_rate
    seen = np.stack([_batches(subject) for _ in range(CLIENTS)])
    claim = (
        "who is in a batch is decided by independent coins of the claimed rate, that no client, round or step repeats"
    )
    told = f"{int(seen.sum()):,} of {seen.size:,} coins fell so that an example was drawn"
    if rate == 1:
        return Check("coins", claim, float(seen.all()), told, chance=False)
    batches = seen.reshape(-1, COINS)
    common = [int((a & b).sum()) for a, b in combinations(batches, 2)]
    # Independent coins: what two batches have in common is binomial, whatever client, round or step they are of.
    repeated = min(_binomial_p(count, COINS, rate**2) for count in common)
    p = min(
        1.0, 3 * min(_binomial_p(int(seen.sum()), seen.size, rate), len(common) * repeated, _sizes_p(batches, rate))
    )
    told += f", {rate * seen.size:,.0f} are expected; two batches have {min(common)} to {max(common)} in common"
    return Check("coins", claim, p, f"{told}, {rate**2 * COINS:,.0f} are expected")


def _binomial_p(count: int, trials: int, probability: float) -> float:
    """Two-sided."""
    above = binomial_at_least(count, trials=trials, probability=probability)
    below = 1 - binomial_at_least(count + 1, trials=trials, probability=probability)
    return min(1.0, 2 * min(above, max(below, 0.0)))


def _sizes_p(batches: np.ndarray, rate: float) -> float:
    """How probable sizes so alike are: a shuffled shard that is cut into batches of one size throws no coins."""
    variance = COINS * rate * (1 - rate)
    if variance < _LEAST_VARIANCE:
        return 1.0
    off = np.square(batches.sum(1) - COINS * rate).sum() / variance
    return sum_of_squares_below(float(off), count=len(batches))


def _batches(subject: Subject) -> np.ndarray:
    """bool (rounds, steps, examples) of one fresh client, with examples that can be told apart at the model's input."""
    model = nn.Linear(COINS, 2, bias=False)
    nn.init.zeros_(model.weight)
    steps, layout = min(STEPS, subject.plan.steps), layout_of(model)
    recipe = Recipe(1, "SGD", 1e-3, 1, steps=steps, loss="l1", metric="mae")
    own = replace(
        subject,
        plan=replace(subject.plan, steps=steps, nominal_examples=COINS),
        trainer=Trainer(model, layout, recipe, mechanism=subject.trainer.mechanism),
        weights=read_vector(model, layout),
        prepare=lambda examples: examples,
    )
    examples = Examples(np.eye(COINS, dtype=np.float32), np.ones((COINS, 2), np.float32))
    source, found = own.make_random(), np.zeros((ROUNDS, steps, COINS), bool)
    for round in range(ROUNDS):
        step = 0

        def note(module: Any, given: Any, of_round: np.ndarray = found[round]) -> None:
            rows = given[0].detach().cpu().numpy()
            # Made-up examples, of a probe before the fit, are none of these.
            real = (np.count_nonzero(rows, axis=1) == 1) & (rows.max(axis=1) == 1)
            if step < steps:  # noqa: B023  # the hook ends with the round; what comes after the last step is no batch
                of_round[step, rows[real].argmax(axis=1)] = True  # noqa: B023

        def count(gradient: np.ndarray) -> None:
            nonlocal step
            step += 1

        with _hooked(model, note):
            own.answer(examples, source, round=round + 1, watch=count)
    return found


def _keystream(subject: Subject, shard: Examples, *, seed: int) -> Check:
    """Whether the source that the client is given is where its random numbers come from, all of them."""
    plan = replace(subject.plan, steps=min(STEPS, subject.plan.steps))
    subject = replace(subject, plan=plan)
    everybody = np.ones((plan.steps, len(shard)), bool)
    subject.answer(shard)  # what is tried out once for a model is made up, and is not drawn again
    wrong = [*_drawn_elsewhere(subject, shard)]
    same = [_under(subject, shard, seed, state) for state in range(3)]
    if any(_drew_otherwise(same[0], answer) for answer in same[1:]):
        wrong.append("the same keystream gave other replies: something is drawn from elsewhere")
    other = subject.answer(shard, Replayed(seed + 1, everybody))
    if any(np.array_equal(a, b) for a, b in zip(same[0].gradients, other.gradients, strict=False)):
        wrong.append("another keystream gave the same step: its noise does not come from the source")
    coins = [subject.answer(shard, Replayed(seed, [row])) for row in (everybody[0], ~everybody[0])]
    if (
        len(shard)
        and not any(a.refused for a in coins)
        and np.array_equal(coins[0].gradients[0], coins[1].gradients[0])
    ):
        wrong.append("other coins gave the same step: its batch does not come from the source")
    wrong += _too_few_bits(subject, shard, seed, everybody)
    seen = wrong[0] if wrong else f"replies of {len(same) + len(coins) + 2} clients follow their keystreams"
    claim = f"all that a fit draws comes from the client's own source, from {LEAST_BITS} bits of it or more"
    return Check("secret source", claim, 0.0 if wrong else 1.0, seen, chance=False)


def _under(subject: Subject, shard: Examples, seed: int, state: int) -> Answer:
    """A replay while the generators of the process are in that state."""
    torch.manual_seed(state)
    np.random.seed(state)
    random.seed(state)
    return subject.answer(shard, Replayed(seed))


def _drew_otherwise(one: Answer, other: Answer) -> bool:
    return one.packet != other.packet or any(
        not np.array_equal(a, b) for a, b in zip(one.gradients, other.gradients, strict=False)
    )


def _drawn_elsewhere(subject: Subject, shard: Examples) -> Iterator[str]:
    """What a fit draws from torch, or from a generator that the whole process shares."""
    used = set(_GLOBAL)
    for _ in range(3):  # once may be another thread of the process
        before = _states()
        with _RandomOperations() as seen:
            subject.answer(shard)
        used &= {name for name, state in _states().items() if state != before[name]}
    if seen.found:
        yield f"{sorted(seen.found)[0]} was answered by a generator of torch, which keeps 32 bits of a seed on a CPU"
    yield from (f"the generator of {name}, which the whole process shares, was drawn from" for name in sorted(used))


def _too_few_bits(subject: Subject, shard: Examples, seed: int, everybody: np.ndarray) -> Iterator[str]:
    """Random numbers that were expanded from a short secret."""
    one_step = replace(subject, plan=replace(subject.plan, steps=1))
    source = Replayed(seed)
    answer = one_step.answer(shard[[]], source)  # empty batches: all that is drawn is noise
    # A word and more stands behind a value of noise; where there are few values, so are the bits.
    if answer.gradients and source.bits < min(LEAST_BITS, 16 * answer.gradients[0].size):
        yield f"the noise of a step was made of {source.bits} bits of the source"
    source = Replayed(seed, everybody)
    one_step.answer(shard, source)
    for use, stream in source.streams.items():
        if 0 < stream.bits < LEAST_BITS and len(shard) >= EXAMPLES:
            yield f"the {use} of {len(shard)} examples were made of {stream.bits} bits of the source"


def _streams(subject: Subject) -> Check:
    """That no two sources, nor two uses of one, have a word in common."""
    sources = [subject.make_random() for _ in range(2)]
    words: dict[str, np.ndarray] = {}
    for number, source in enumerate(sources):
        if hasattr(source, "words"):
            words[f"the source of client {number}"] = source.words(_WORDS)
        for use in ("masks", "views") if hasattr(source, "stream") else ():
            words[f"{use} of client {number}"] = source.stream(use).words(_WORDS)
    shared = [pair for pair in combinations(words, 2) if np.intersect1d(words[pair[0]], words[pair[1]]).size]
    repeats = [name for name, values in words.items() if len(np.unique(values)) < len(values)]
    claim = "no two clients and no two uses of a client's source have a random word in common"
    seen = f"{len(words)} streams of {_WORDS:,} words have none in common"
    if repeats:
        seen = f"{repeats[0]} repeats itself"
    if shared:
        seen = f"{shared[0][0]} and {shared[0][1]} have words in common"
    return Check("separate streams", claim, 0.0 if shared or repeats else 1.0, seen, chance=False)


class _RandomOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own hook of subclasses
    """Names of the operations that torch's generators answered, whichever those are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def _states() -> dict[str, bytes]:
    """The generators of the process, as bytes that change when something is drawn."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.asarray(keys).tobytes() + repr((kind, rest)).encode(),
        "python": repr(random.getstate()).encode(),
    }


@contextmanager
def _generators_kept() -> Iterator[None]:
    """The states of the process's generators, put back at the end."""
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)


@contextmanager
def _hooked(model: nn.Module, hook: Any) -> Iterator[None]:
    """A hook before each forward pass, for a while."""
    handle = model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
