"""Whether an example adds its own share to a sum and moves nobody else's, whatever weights a server sends.
Knows answers and models; exact sums alone can be asked so.

Float kernels round a row by the batch it stands in. A server may send weights that blow this up: units in pairs that
cancel, with 2^40 behind them, so that the logit is rounding and nothing else. One example more then moves the shares of
all others by whole clip norms, though its own is bounded. What decides is a sum of four: with and without the example,
beside others and alone, under the same noise.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fedq.audit.findings import Check
from fedq.audit.neighbours import scaled
from fedq.audit.sources import Replayed
from fedq.audit.subject import Answer, Subject
from fedq.data import Examples
from fedq.training import Recipe, Trainer, layout_of, read_vector

OWN_MODEL, ATTACKED = 4, 12  # comparisons on each model; without padding 5 to 9 in 10 of the latter do not add up
_EXPECTED = 40  # examples in a batch of the attacked model: kernels of many sizes are met
_INPUTS, _UNITS, _BEHIND, _CLASSES = 128, 64, 16, 10
NOT_EXACT = "shares: the sums of noise=gaussian are of floats, and depend on the whole batch"


def shares_check(subject: Subject, examples: Examples, *, rng: np.random.Generator) -> Check:
    """On the subject's own model, with parts of its weights scaled, and on one that is made for the attack."""
    subject = replace(subject, plan=replace(subject.plan, steps=1))
    attacked, made_up = _attacked(subject, rng)
    wrong, most, done = 0, 0.0, 0
    for own, data, count in ((subject, examples, OWN_MODEL), (attacked, made_up, ATTACKED)):
        for trial in range(count):
            weights = own.weights if own is attacked or trial % 2 else scaled(own.weights, rng)
            apart = _apart(own, data, weights, rng)
            wrong, most, done = wrong + (apart > 1), max(most, apart), done + 1
    return Check(
        "shares",
        "one example moves a sum by its own share alone, whatever weights the server sends",
        0.0 if wrong else 1.0,
        f"{wrong:,} of {done:,} comparisons against it; others moved by up to {most:.3g} of what float32 rounds",
        chance=False,
    )


def _apart(subject: Subject, data: Examples, weights: np.ndarray, rng: np.random.Generator) -> float:
    """How far the sums of four are from adding up, as a share of what the float32 of an optimizer's input explains."""
    size = int(rng.integers(1, min(len(data), 2 * _EXPECTED)))
    rows = rng.permutation(len(data))[: size + 1]  # by their place in the data, which is also their name
    place, seed = int(rng.integers(0, size + 1)), int(rng.integers(2**62))
    others, one = np.delete(rows, place), rows[[place]]
    answers = []
    for chosen in (rows, others, one, rows[:0]):
        coins = [np.ones(len(chosen), bool)]
        answers.append(subject.answer(data[chosen], Replayed(seed, coins, names=chosen), weights=weights))
    if any(answer.refused is not None or len(answer.gradients) != 1 for answer in answers):
        return 0.0  # `reply` and `control flow` are other checks
    return _beyond_rounding(answers)


def _beyond_rounding(answers: list[Answer]) -> float:
    whole, others, one, none = (answer.gradients[0] for answer in answers)
    apart = float(np.linalg.norm((whole - others) - (one - none)))
    # The optimizer gets each value as a float32: half a unit in its last place, for each of the four.
    rounded = 2.0**-24 * float(np.linalg.norm(np.abs(whole) + np.abs(others) + np.abs(one) + np.abs(none)))
    if not np.isfinite(apart):
        return np.inf
    return apart / rounded if rounded else float(apart > 0)


def _attacked(subject: Subject, rng: np.random.Generator) -> tuple[Subject, Examples]:
    """The mechanism on a model whose first logit is the rounding of a sum that cancels, 2^40 times."""
    model = nn.Sequential(
        nn.Linear(_INPUTS, _UNITS), nn.ReLU(), nn.Linear(_UNITS, _BEHIND), nn.Linear(_BEHIND, _CLASSES)
    )
    first, second, third = (layer for layer in model if isinstance(layer, nn.Linear))
    with torch.no_grad():
        for p in model.parameters():
            drawn = rng.standard_normal(tuple(p.shape), dtype=np.float32) / np.sqrt(p.shape[-1])
            p.copy_(torch.from_numpy(drawn.astype(np.float32)))
        order = torch.from_numpy(rng.permutation(_UNITS))
        units, twins = order[: _UNITS // 2], order[_UNITS // 2 :]
        first.weight[twins], first.bias[twins] = first.weight[units], first.bias[units]
        second.weight[0, twins] = -second.weight[0, units]
        second.bias[0] = 0.0
        third.weight[:, 0] *= 2.0**40
    layout = layout_of(model)
    recipe = Recipe(1, "SGD", 1e-3, 1, steps=1)
    rate = subject.plan.sample_rate
    own = replace(
        subject,
        plan=replace(subject.plan, nominal_examples=max(1, round(_EXPECTED / rate))),
        trainer=Trainer(model, layout, recipe, mechanism=subject.trainer.mechanism),
        weights=read_vector(model, layout),
        prepare=lambda examples: examples,
    )
    inputs = rng.standard_normal((3 * _EXPECTED, _INPUTS), dtype=np.float32)
    return own, Examples(inputs, rng.integers(0, _CLASSES, len(inputs)))
