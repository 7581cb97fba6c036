"""Checks that a client without examples sends fresh noise of the claimed size. Knows answers alone.

The batches of such a client are all empty, so the optimizer gets only noise over the public divisor in each step.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fedq.audit.findings import Check
from fedq.audit.subject import AuditError, Subject
from fedq.audit.tails import sum_of_squares_below, uncorrelated
from fedq.data import Examples

ENOUGH_VALUES = 20_000  # values of noise: noise that is 3 % too small has a p-value of 1e-5
FEWEST_RUNS, MOST_RUNS = 4, 50


def noise_checks(subject: Subject, like: Examples) -> list[Check]:
    """Three checks over enough runs; `like`: any examples of the data, for their shapes. May raise AuditError."""
    trained = sum(p.numel() for p in subject.trainer.model.parameters() if p.requires_grad)
    runs = math.ceil(ENOUGH_VALUES / (trained * subject.plan.steps))
    answers = [subject.answer(like[[]]) for _ in range(min(MOST_RUNS, max(FEWEST_RUNS, runs)))]
    refused = next((answer.refused for answer in answers if answer.refused is not None), None)
    if refused is not None and (why := subject.answer(like[:1]).refused) is not None:
        raise AuditError(f"the client does not answer, with examples or without: {why}")
    # A client that does not answer without examples has sent no noise; `neighbours` reports that difference.
    scale = subject.plan.divisor / subject.plan.noise_std
    noise = [np.concatenate(answer.gradients or (np.zeros(0),)) * scale for answer in answers]
    steps = subject.plan.steps
    return [
        _size(noise, expected=trained * steps * len(noise)),
        _everywhere(noise, steps, trained),
        _freshness(noise, steps),
    ]


def _size(noise: Sequence[np.ndarray], *, expected: int) -> Check:
    values = np.concatenate(noise)
    # Missing values count as zero noise: a step that was left out has none.
    total = float(values @ values)
    p = sum_of_squares_below(total, count=expected) if math.isfinite(total) else 0.0
    return Check(
        "noise size",
        "each value of each step has Gaussian noise of noise_multiplier x clip_norm",
        p,
        f"{math.sqrt(total / expected):.4f} of the claimed standard deviation, over {expected:,} values",
    )


def _everywhere(noise: Sequence[np.ndarray], steps: int, trained: int) -> Check:
    """The value with the least noise over all steps and runs; the p-value corrects for this selection."""
    table = np.zeros((len(noise) * steps, trained))
    for row, values in enumerate(noise):
        if values.size == steps * trained:
            table[row * steps : (row + 1) * steps] = values.reshape(steps, trained)
    least = float(np.square(table).sum(axis=0).min())
    p = min(1.0, trained * sum_of_squares_below(least, count=len(table))) if math.isfinite(least) else 0.0
    return Check(
        "noise everywhere",
        "no trained value has less noise than the others",
        p,
        f"the least is {math.sqrt(least / len(table)):.4f} of the claimed standard deviation, over {len(table)} steps",
    )


def _freshness(noise: Sequence[np.ndarray], steps: int) -> Check:
    """Correlation of each run with the next, and of each step with the next one."""
    sizes = {values.size for values in noise}
    ps, worst = [1.0], 0.0
    comparable = len(sizes) == 1 and noise[0].size % steps == 0
    between = list(pairwise(noise)) if comparable else []
    within = [pair for values in noise for pair in pairwise(np.split(values, steps))] if comparable else []
    for group in filter(None, (between, within)):
        left, right = (np.concatenate(side) for side in zip(*group, strict=True))
        ps.append(uncorrelated(left, right))
        scale = math.sqrt(float(left @ left) * float(right @ right))
        worst = max(worst, abs(float(left @ right)) / scale if scale else 0.0)
    tested = max(1, len(ps) - 1)
    return Check(
        "noise fresh",
        "the noise of one run or step is independent of another's",
        min(1.0, tested * min(ps)),
        f"largest correlation {worst:.4f} between runs and between steps",
    )
