"""Black-box canaries: mislabelled examples in the data, and guesses from the trained model's loss on each.

Knows answers and models. It uses the experiment's own model, quantization and codec over all rounds, like a run with
this one client.
"""

from collections.abc import Callable

import numpy as np
import torch

from fedq.audit.bounds import GuessesByShare
from fedq.audit.subject import AuditError, Subject
from fedq.audit.verdict import guess_by_order
from fedq.data import Examples
from fedq.training import LOSSES, outputs_of


def black_box_run(
    subject: Subject,
    shard: Examples,
    *,
    canaries: int,
    rounds: int,
    rng: np.random.Generator,
    tell: Callable[[int], None],
) -> GuessesByShare:
    """Train on the shard and on canaries chosen by coins, and guess the coins from the decrease of their losses.

    `tell`: called with the number of each finished round. AuditError if the client does not answer.
    """
    examples = _mislabelled(shard, canaries, rng)
    included = rng.random(canaries) < 0.5
    chosen = examples[np.flatnonzero(included)]
    together = Examples(np.concatenate([shard.inputs, chosen.inputs]), np.concatenate([shard.targets, chosen.targets]))
    before = _losses(subject, subject.weights, examples)
    weights, random = subject.weights, subject.make_random()
    for round in range(1, rounds + 1):
        answer = subject.answer(together, random, weights=weights, round=round)
        if answer.refused is not None:
            raise AuditError(f"a client with canaries among its data does not answer: {answer.refused}")
        weights = weights + answer.update
        tell(round)
    return guess_by_order(before - _losses(subject, weights, examples), included)


def _mislabelled(shard: Examples, canaries: int, rng: np.random.Generator) -> Examples:
    """Inputs of the shard with targets of other examples, so that only training on one reveals its target."""
    inputs = shard.inputs[rng.integers(len(shard), size=canaries)]
    # Each differs a little from its original example, whose true target would otherwise conflict.
    inputs = inputs + rng.normal(size=inputs.shape).astype(np.float32) * shard.inputs.std()
    return Examples(inputs, shard.targets[rng.integers(len(shard), size=canaries)])


def _losses(subject: Subject, weights: np.ndarray, examples: Examples) -> np.ndarray:
    subject.trainer.load(weights)
    outputs = outputs_of(subject.trainer.model, examples.inputs)
    loss = LOSSES[subject.trainer.recipe.loss](outputs, torch.from_numpy(examples.targets))
    return np.asarray(loss.double())
