"""Checks that the random numbers of a private fit are secret: batches, noise, masks and augmentations.
Knows answers and generators.

A guarantee assumes that nobody can compute the random numbers again. But seeds, round numbers and identities are
public, 32 bits can be searched in minutes, and all code of the process shares its generators. So all random numbers
must come from the client's own source. An auditor who replays that source can verify it.
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

LEAST_BITS = 128  # secret bits behind any random number; fewer can be searched
EXAMPLES = 12  # size of the shard for replays
COINS, CLIENTS, ROUNDS, STEPS = 1024, 4, 2, 2  # in which batches are observed: 16,384 coins
_WORDS = 2048  # words of each stream; two of 12,288 words of 64 bits are equal with probability 4e-12
_LEAST_VARIANCE = 5.0  # variance of a batch's size, below which it is not nearly normal
_GLOBAL = ("torch", "numpy", "python")


def secrecy_checks(subject: Subject, examples: Examples, *, rng: np.random.Generator) -> list[Check]:
    """Three checks; `examples`: any examples of the data."""
    shard = examples[rng.choice(len(examples), min(EXAMPLES, len(examples)), replace=False)]
    with _generators_kept():
        return [_coins(subject), _keystream(subject, shard, seed=int(rng.integers(2**62))), _streams(subject)]


def _coins(subject: Subject) -> Check:
    """Check that the examples in batches, seen at the model's input, follow independent coins of the claimed rate."""
    rate = subject.plan.sample_rate
    seen = np.stack([_batches(subject) for _ in range(CLIENTS)])
    claim = "independent coins of the claimed rate choose each batch, and no client, round or step repeats them"
    seen_text = f"{int(seen.sum()):,} of {seen.size:,} coins fell so that an example was drawn"
    if rate == 1:
        return Check("coins", claim, float(seen.all()), seen_text, chance=False)
    batches = seen.reshape(-1, COINS)
    common = [int((a & b).sum()) for a, b in combinations(batches, 2)]
    # With independent coins the overlap of two batches is binomial, for any clients, rounds and steps.
    repeated = min(_binomial_p(count, COINS, rate**2) for count in common)
    p = min(
        1.0, 3 * min(_binomial_p(int(seen.sum()), seen.size, rate), len(common) * repeated, _sizes_p(batches, rate))
    )
    seen_text += f", {rate * seen.size:,.0f} are expected; two batches have {min(common)} to {max(common)} in common"
    return Check("coins", claim, p, f"{seen_text}, {rate**2 * COINS:,.0f} are expected")


def _binomial_p(count: int, trials: int, probability: float) -> float:
    """Two-sided p-value."""
    above = binomial_at_least(count, trials=trials, probability=probability)
    below = 1 - binomial_at_least(count + 1, trials=trials, probability=probability)
    return min(1.0, 2 * min(above, max(below, 0.0)))


def _sizes_p(batches: np.ndarray, rate: float) -> float:
    """P-value of batch sizes that vary too little: a shuffled shard cut into equal batches uses no coins."""
    variance = COINS * rate * (1 - rate)
    if variance < _LEAST_VARIANCE:
        return 1.0
    off = np.square(batches.sum(1) - COINS * rate).sum() / variance
    return sum_of_squares_below(float(off), count=len(batches))


def _batches(subject: Subject) -> np.ndarray:
    """Batches of one new client, bool (rounds, steps, examples); the model's input identifies each example."""
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
            # Made-up examples of a probe before the fit are left out.
            real = (np.count_nonzero(rows, axis=1) == 1) & (rows.max(axis=1) == 1)
            if step < steps:  # noqa: B023  # the hook ends with the round; no batch comes after the last step
                of_round[step, rows[real].argmax(axis=1)] = True  # noqa: B023

        def count(gradient: np.ndarray) -> None:
            nonlocal step
            step += 1

        with _hooked(model, note):
            own.answer(examples, source, round=round + 1, watch=count)
    return found


def _keystream(subject: Subject, shard: Examples, *, seed: int) -> Check:
    """Check that all random numbers of a client come from the source that it is given."""
    plan = replace(subject.plan, steps=min(STEPS, subject.plan.steps))
    subject = replace(subject, plan=plan)
    every_coin = np.ones((plan.steps, len(shard)), bool)
    subject.answer(shard)  # run the probes of a model now, since they draw only once
    wrong = [*_drawn_elsewhere(subject, shard)]
    same = [_under(subject, shard, seed, state) for state in range(3)]
    if any(_drew_otherwise(same[0], answer) for answer in same[1:]):
        wrong.append("the same keystream gave other replies: something is drawn from elsewhere")
    other = subject.answer(shard, Replayed(seed + 1, every_coin))
    if any(np.array_equal(a, b) for a, b in zip(same[0].gradients, other.gradients, strict=False)):
        wrong.append("another keystream gave the same step: its noise does not come from the source")
    coins = [subject.answer(shard, Replayed(seed, [row])) for row in (every_coin[0], ~every_coin[0])]
    if (
        len(shard)
        and not any(a.refused for a in coins)
        and np.array_equal(coins[0].gradients[0], coins[1].gradients[0])
    ):
        wrong.append("other coins gave the same step: its batch does not come from the source")
    wrong += _too_few_bits(subject, shard, seed, every_coin)
    seen = wrong[0] if wrong else f"replies of {len(same) + len(coins) + 2} clients follow their keystreams"
    claim = f"all that a fit draws comes from the client's own source, from {LEAST_BITS} bits of it or more"
    return Check("secret source", claim, 0.0 if wrong else 1.0, seen, chance=False)


def _under(subject: Subject, shard: Examples, seed: int, state: int) -> Answer:
    """The answer of a replay, with the process-wide generators seeded with `state`."""
    torch.manual_seed(state)
    np.random.seed(state)
    random.seed(state)
    return subject.answer(shard, Replayed(seed))


def _drew_otherwise(one: Answer, other: Answer) -> bool:
    return one.packet != other.packet or any(
        not np.array_equal(a, b) for a, b in zip(one.gradients, other.gradients, strict=False)
    )


def _drawn_elsewhere(subject: Subject, shard: Examples) -> Iterator[str]:
    """Faults: draws of a fit from torch's or another process-wide generator."""
    used = set(_GLOBAL)
    for _ in range(3):  # a single draw may be another thread's
        before = _states()
        with _RandomOperations() as seen:
            subject.answer(shard)
        used &= {name for name, state in _states().items() if state != before[name]}
    if seen.found:
        yield f"{sorted(seen.found)[0]} was answered by a generator of torch, which keeps 32 bits of a seed on a CPU"
    yield from (f"the generator of {name}, which the whole process shares, was drawn from" for name in sorted(used))


def _too_few_bits(subject: Subject, shard: Examples, seed: int, every_coin: np.ndarray) -> Iterator[str]:
    """Faults: random numbers that were expanded from too few secret bits."""
    one_step = replace(subject, plan=replace(subject.plan, steps=1))
    source = Replayed(seed)
    answer = one_step.answer(shard[[]], source)  # empty batches: only noise is drawn
    # Each value of noise takes at least a word, so a few values take few bits.
    if answer.gradients and source.bits < min(LEAST_BITS, 16 * answer.gradients[0].size):
        yield f"the noise of a step was made of {source.bits} bits of the source"
    source = Replayed(seed, every_coin)
    one_step.answer(shard, source)
    for use, stream in source.streams.items():
        if 0 < stream.bits < LEAST_BITS and len(shard) >= EXAMPLES:
            yield f"the {use} of {len(shard)} examples were made of {stream.bits} bits of the source"


def _streams(subject: Subject) -> Check:
    """Check that no two sources, and no two streams of one source, share a word."""
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
    """Records the names of operations that torch's own generators answered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def _states() -> dict[str, bytes]:
    """The states of the process-wide generators, as bytes that change with every draw."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.asarray(keys).tobytes() + repr((kind, rest)).encode(),
        "python": repr(random.getstate()).encode(),
    }


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Restores the states of the process-wide generators at the end."""
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)


@contextmanager
def _hooked(model: nn.Module, hook: Any) -> Iterator[None]:
    """Inside, a hook runs before each forward pass."""
    handle = model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
