"""Checks with neighbouring data under the same randomness: the changes that one more example may cause. Knows answers.

A pair is one shard with and without one example, which is drawn in one step or in none. All other randomness is
replayed, also the masks and augmentations of each example. If the example is not drawn, nothing may differ. If it is
drawn, the sums may differ by at most the clip norm. In some pairs the server's weights are scaled by powers of two.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from fedq.audit.findings import Check
from fedq.audit.sources import Draw, Replayed
from fedq.audit.subject import Answer, AuditError, Subject
from fedq.data import Examples
from fedq.flower import wire
from fedq.privacy import DPPlan
from fedq.privacy.mechanisms import NOISES

STEPS = 2  # steps of a pair: shows differences between steps, and state that is kept between them
USUAL_SHARD, LARGEST_SHARD = 12, 256  # small ones are fast; one in five may have twice the nominal examples
PER_SHARD = 10  # examples added to the same shard, one at a time
SCALED = 0.2  # share of the shards whose weights a server scaled, by 2^10 to 2^40
# Tolerance of float32 sums (noise=gaussian), relative to the clip norm and to the noised sum.
_ROUNDING, _ROUNDING_OF_SUM = 1e-3, 2.0**-22
_OF_FLOAT32 = 2.0**-24  # relative rounding of an exact sum's values in the optimizer's input

CLAIMS = {
    "reply": "whether a client replies does not depend on one example",
    "message": "fields, numbers, headers and lengths are public, and the same for neighbours",
    "spend": "one spend is written, with the plan's mechanism and the steps and rate that were used",
    "control flow": "neighbours have as many steps, and the same draws in the same order",
    "not drawn": "an example that is in no batch changes no byte of the reply",
    "untrained values": "values that get no noise are the same for neighbours",
    "sensitivity": "one example moves the sum of a step by at most the clip norm",
}


def neighbour_checks(
    subject: Subject, examples: Examples, *, pairs: int, rng: np.random.Generator, tell: Callable[[int], None]
) -> list[Check]:
    """One check for each claim over `pairs` pairs; `tell` is called with the number of finished pairs."""
    steps = min(STEPS, subject.plan.steps)
    subject = replace(subject, plan=replace(subject.plan, steps=steps))
    broken: Counter[str] = Counter()
    first: dict[str, str] = {}
    largest, done = 0.0, 0
    while done < pairs:
        nominal = min(LARGEST_SHARD, 2 * subject.plan.nominal_examples)
        size = int(rng.integers(0, min(len(examples), nominal if rng.random() < 0.2 else USUAL_SHARD) + 1))
        shard = examples[rng.choice(len(examples), size, replace=False)]
        seed = int(rng.integers(2**62))
        coins = rng.random((steps, size)) < rng.choice([0.0, 0.5, 1.0])  # empty and full batches too
        names = np.arange(size)
        weights = scaled(subject.weights, rng) if NOISES[subject.plan.noise].exact and rng.random() < SCALED else None
        without_source = Replayed(seed, coins, names=names)
        without = subject.answer(shard, without_source, weights=weights)
        if without.refused is not None and size:
            raise AuditError(f"a client with {size} examples of the data does not answer: {without.refused}")
        for _ in range(min(PER_SHARD, pairs - done)):
            kind = KINDS[int(rng.integers(len(KINDS)))]
            drawn_in = int(rng.integers(-1, steps))  # -1: in no step
            place = int(rng.integers(0, size + 1))
            added = kind(examples[[int(rng.integers(len(examples)))]])
            column = np.arange(steps) == drawn_in
            source = Replayed(seed, np.insert(coins, place, column, axis=1), names=np.insert(names, place, size))
            answer = subject.answer(_inserted(shard, added, place), source, weights=weights)
            moved = _moved(subject, without, answer, drawn_in)
            largest = max(largest, moved)
            for name in _differences(subject, without, answer, without_source.draws, source.draws, drawn_in):
                broken[name] += 1
                first.setdefault(name, _first_case(name, without, answer, kind.__name__.strip("_").replace("_", " ")))
            if moved > 1:
                broken["sensitivity"] += 1
            done += 1
        tell(done)
    first["sensitivity"] = f"largest move {largest:.4g} clip norms"
    return [_check(name, broken[name], done, first.get(name, "")) for name in CLAIMS]


def scaled(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Weights with one segment scaled by a power of two, as a hostile server may send: gradients explode."""
    first, last = sorted(rng.integers(0, len(weights) + 1, size=2))
    changed = weights.copy()
    changed[first:last] *= np.float32(2.0 ** int(rng.choice([10, 20, 40])))
    return changed


def _check(name: str, broken: int, pairs: int, first_case: str) -> Check:
    seen = f"{broken:,} of {pairs:,} pairs against it" + (f"; {first_case}" if first_case else "")
    return Check(name, CLAIMS[name], 0.0 if broken else 1.0, seen, chance=False)


def _differences(
    subject: Subject, without: Answer, answer: Answer, draws: list[Draw], other_draws: list[Draw], drawn_in: int
) -> list[str]:
    """Names of the claims that a pair contradicts, without the sensitivity."""
    if answer.refused is not None or without.refused is not None:
        return ["reply"] * ((answer.refused is None) != (without.refused is None))
    found = []
    if answer.message != without.message or not set(answer.message) <= wire.PUBLIC_FIELDS:
        found.append("message")
    if answer.spends != without.spends or not _paid(subject.plan, answer, other_draws):
        found.append("spend")
    if draws != other_draws or len(answer.gradients) != len(without.gradients):
        found.append("control flow")
    if drawn_in < 0 and answer.packet != without.packet:
        found.append("not drawn")
    untrained = ~subject.trained
    if not np.array_equal(answer.update[untrained], without.update[untrained]):
        found.append("untrained values")
    return found


def _paid(plan: DPPlan, answer: Answer, draws: list[Draw]) -> bool:
    """Whether there is one spend, with the plan's mechanism and the steps and rate that were used."""
    if [spend.as_mechanism() for spend in answer.spends] != [plan.mechanism]:
        return False
    rates = {rate for kind, rate in draws if kind == "bernoulli"}
    return (answer.spends[0].clip_norm, len(answer.gradients), rates) == (
        plan.clip_norm,
        plan.steps,
        {plan.sample_rate},
    )


def _moved(subject: Subject, without: Answer, answer: Answer, drawn_in: int) -> float:
    """Distance of the sums of a step in clip norms, corrected for float32 rounding, up to the step of the draw."""
    last = len(without.gradients) - 1 if drawn_in < 0 else drawn_in
    most = 0.0
    for step in range(min(last + 1, len(answer.gradients), len(without.gradients))):
        ours, theirs = answer.gradients[step], without.gradients[step]
        clips = subject.plan.divisor / subject.plan.clip_norm
        if NOISES[subject.plan.noise].exact:
            rounding = _OF_FLOAT32 * float(np.linalg.norm(np.abs(ours) + np.abs(theirs))) * clips
        else:
            rounding = _ROUNDING + _ROUNDING_OF_SUM * float(np.linalg.norm(theirs)) * clips
        distance = float(np.linalg.norm(ours - theirs)) * clips
        most = max(most, distance / (1 + rounding) if math.isfinite(distance) else math.inf)
    return most


def _first_case(name: str, without: Answer, answer: Answer, kind: str) -> str:
    if name == "reply":
        return f"first with a {kind} example: {answer.refused or without.refused}"
    if name == "message":
        keys = sorted(set(answer.message) ^ set(without.message)) or [
            key for key in answer.message if answer.message[key] != without.message[key]
        ]
        return f"first in {', '.join(keys) or ', '.join(sorted(set(answer.message) - wire.PUBLIC_FIELDS))}"
    return f"first with a {kind} example"


def _inserted(shard: Examples, added: Examples, place: int) -> Examples:
    inputs = np.concatenate([shard.inputs[:place], added.inputs, shard.inputs[place:]])
    return _unchecked(inputs, np.concatenate([shard.targets[:place], added.targets, shard.targets[place:]]))


def _unchecked(inputs: np.ndarray, targets: np.ndarray) -> Examples:
    """Examples with values that fedq's loaders would refuse; the mechanism must still handle them."""
    examples = Examples(np.zeros_like(inputs), targets)
    object.__setattr__(examples, "inputs", np.ascontiguousarray(inputs))
    return examples


def _real(example: Examples) -> Examples:
    return example


def _mislabelled(example: Examples) -> Examples:
    targets = example.targets
    return Examples(example.inputs, np.zeros_like(targets) if targets.dtype == np.int64 else -targets)


def _empty(example: Examples) -> Examples:
    return Examples(np.zeros_like(example.inputs), example.targets)


def _enlarged(example: Examples) -> Examples:
    return Examples(example.inputs * np.float32(1e3), example.targets)


def _overflowing(example: Examples) -> Examples:
    """A finite example for which the model's results are not finite."""
    largest = np.float32(torch.finfo(torch.float32).max)
    return Examples(
        np.where(np.arange(example.inputs.size).reshape(example.inputs.shape) % 2, largest, -largest), example.targets
    )


def _not_a_number(example: Examples) -> Examples:
    return _unchecked(np.full_like(example.inputs, np.nan), example.targets)


KINDS = (_real, _mislabelled, _empty, _enlarged, _overflowing, _not_a_number)
