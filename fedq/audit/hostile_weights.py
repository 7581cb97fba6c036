"""Checks that an example adds its own share to a sum and changes no other share, for any weights of a server.
Knows answers and models; applies to exact sums only.

Float kernels round a row depending on its batch. A server may send weights that enlarge this rounding: pairs of units
that cancel, followed by a factor 2^40, so that the logit is pure rounding. One more example then changes the shares of
all others by several clip norms, although its own share is bounded. The check compares four sums under the same noise:
with and without the example, beside others and alone.
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

OWN_MODEL, ATTACKED = 4, 12  # comparisons on each model; without padding 5 to 9 in 10 on the attacked model fail
_EXPECTED = 40  # expected batch size of the attacked model, so that kernels of many sizes run
_INPUTS, _UNITS, _HIDDEN, _CLASSES = 128, 64, 16, 10
NOT_EXACT = "shares: noise=gaussian sums floats, which depend on the whole batch"


def shares_check(subject: Subject, examples: Examples, *, rng: np.random.Generator) -> Check:
    """The check on the subject's own model, with some of its weights scaled, and on a model built for the attack."""
    subject = replace(subject, plan=replace(subject.plan, steps=1))
    attacked, made_up = _attacked(subject, rng)
    wrong, most, done = 0, 0.0, 0
    for own, data, count in ((subject, examples, OWN_MODEL), (attacked, made_up, ATTACKED)):
        for trial in range(count):
            weights = own.weights if own is attacked or trial % 2 else scaled(own.weights, rng)
            excess = _excess(own, data, weights, rng)
            wrong, most, done = wrong + (excess > 1), max(most, excess), done + 1
    return Check(
        "shares",
        "one example moves a sum by its own share alone, whatever weights the server sends",
        0.0 if wrong else 1.0,
        f"{wrong:,} of {done:,} comparisons against it; others moved by up to {most:.3g} of what float32 rounds",
        chance=False,
    )


def _excess(subject: Subject, data: Examples, weights: np.ndarray, rng: np.random.Generator) -> float:
    """The violation of additivity over four sums, relative to the float32 rounding of the optimizer's input."""
    size = int(rng.integers(1, min(len(data), 2 * _EXPECTED)))
    rows = rng.permutation(len(data))[: size + 1]  # the index in the data is also the example's name
    place, seed = int(rng.integers(0, size + 1)), int(rng.integers(2**62))
    others, one = np.delete(rows, place), rows[[place]]
    answers = []
    for chosen in (rows, others, one, rows[:0]):
        coins = [np.ones(len(chosen), bool)]
        answers.append(subject.answer(data[chosen], Replayed(seed, coins, names=chosen), weights=weights))
    if any(answer.refused is not None or len(answer.gradients) != 1 for answer in answers):
        return 0.0  # the checks `reply` and `control flow` cover this
    return _relative_to_rounding(answers)


def _relative_to_rounding(answers: list[Answer]) -> float:
    all_rows, others, one, none = (answer.gradients[0] for answer in answers)
    difference = float(np.linalg.norm((all_rows - others) - (one - none)))
    # The optimizer gets float32 values: half a unit in the last place for each of the four sums.
    rounded = 2.0**-24 * float(np.linalg.norm(np.abs(all_rows) + np.abs(others) + np.abs(one) + np.abs(none)))
    if not np.isfinite(difference):
        return np.inf
    return difference / rounded if rounded else float(difference > 0)


def _attacked(subject: Subject, rng: np.random.Generator) -> tuple[Subject, Examples]:
    """The mechanism on a model whose first logit is 2^40 times the rounding of a sum that cancels; and its data."""
    model = nn.Sequential(
        nn.Linear(_INPUTS, _UNITS), nn.ReLU(), nn.Linear(_UNITS, _HIDDEN), nn.Linear(_HIDDEN, _CLASSES)
    )
    first, second, third = (layer for layer in model if isinstance(layer, nn.Linear))
    with torch.no_grad():
        for p in model.parameters():
            drawn = rng.standard_normal(tuple(p.shape), dtype=np.float32) / np.sqrt(p.shape[-1])
            p.copy_(torch.from_numpy(drawn.astype(np.float32)))
        order = torch.from_numpy(rng.permutation(_UNITS))
        units, negated = order[: _UNITS // 2], order[_UNITS // 2 :]
        first.weight[negated], first.bias[negated] = first.weight[units], first.bias[units]
        second.weight[0, negated] = -second.weight[0, units]
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
