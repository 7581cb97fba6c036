"""White-box canaries: examples whose gradients are known, clipped ones, and what is guessed of them from one run.

The canaries' model is linear with an absolute loss, so an example's gradient is the outer product of its input and the
signs of its residual, whatever the weights. Inputs with one value and signs from a Hadamard matrix make gradients that
are orthogonal to each other: the noised sums tell of each canary alone, as they would of one in a large model. The
mechanism is the audited client's own code at the run's own plan; its model and data are `neighbours`' business.
"""

from dataclasses import replace

import numpy as np
from torch import nn

from fedq.audit.bounds import Errors, Several
from fedq.audit.subject import AuditError, Subject
from fedq.audit.verdict import guess_by_evidence
from fedq.data import Examples
from fedq.privacy import DPPlan
from fedq.training import Recipe, Trainer, layout_of, read_vector

_SIGNS = 64  # outputs of the linear model
_STEEP = 10.0  # how many clip norms a canary's gradient is long: it must be clipped to count as one
_FAR = 1e6  # targets no output ever comes near


def canary_subject(subject: Subject, canaries: int) -> tuple[Subject, Examples]:
    """The subject with the canaries' model in place of its own, and all canaries."""
    width = -(-canaries // _SIGNS)
    model = nn.Linear(width, _SIGNS, bias=False)
    nn.init.zeros_(model.weight)
    layout = layout_of(model)
    recipe = Recipe(1, "SGD", 1e-3, 1, steps=subject.plan.steps, loss="l1", metric="mae")
    trainer = Trainer(model, layout, recipe, mechanism=subject.trainer.mechanism)
    signs = _hadamard(_SIGNS)
    which = np.arange(width * _SIGNS)[:canaries]
    inputs = np.zeros((canaries, width), np.float32)
    # The loss is a mean over outputs, so the gradient of a canary is its input over sqrt(outputs) long.
    inputs[np.arange(canaries), which // _SIGNS] = _STEEP * subject.plan.clip_norm * np.sqrt(_SIGNS)
    examples = Examples(inputs, (-_FAR * signs[which % _SIGNS]).astype(np.float32))
    own = replace(subject, trainer=trainer, weights=read_vector(model, layout), prepare=lambda examples: examples)
    return own, examples


def white_box_run(subject: Subject, *, canaries: int, rounds: int, rng: np.random.Generator) -> Several:
    """Throw the coins, train `rounds` times on those whose coin fell so, and guess the surest from all seen."""
    own, examples = canary_subject(subject, canaries)
    included = rng.random(canaries) < 0.5
    return guess_by_evidence(_score(own, examples[np.flatnonzero(included)], rounds)[:canaries], included)


def repeated_runs(subject: Subject, *, runs: int, rounds: int, rng: np.random.Generator) -> Errors:
    """Independent runs on one canary or on nothing, by a coin each, and how often each is taken for the other."""
    own, examples = canary_subject(subject, _SIGNS)
    included = rng.random(runs) < 0.5
    guessed = [_score(own, examples[:1] if coin else examples[:0], rounds)[0] > 0 for coin in included]
    taken = np.asarray(guessed)
    return Errors(
        out=int((~included).sum()),
        wrongly_in=int((taken & ~included).sum()),
        included=int(included.sum()),
        wrongly_out=int((~taken & included).sum()),
    )


def _score(own: Subject, chosen: Examples, rounds: int) -> np.ndarray:
    """What a whole run on these examples tells of every canary of the model."""
    scores = np.zeros(own.trainer.layout.size)
    random = own.make_random()  # one client's own, in all rounds
    for _ in range(rounds):
        answer = own.answer(chosen, random)
        if answer.refused is not None:
            raise AuditError(f"a client with the canaries does not answer: {answer.refused}")
        for gradient in answer.gradients:
            scores += _evidence(gradient, own.plan)
    return scores


def _evidence(gradient: np.ndarray, plan: DPPlan) -> np.ndarray:
    """Log-likelihood ratio of each canary's being in the data, from one step; float64 (values of the model,).

    By Neyman and Pearson no other score tells more, of a mechanism that is what its plan says.
    """
    along = _hadamard(_SIGNS) @ gradient.reshape(_SIGNS, -1)  # row: signs, column: input
    # 1 where the canary was drawn, 0 where not, and noise of the noise multiplier.
    seen = along.T.ravel() * (plan.divisor / plan.clip_norm / np.sqrt(_SIGNS))
    drawn = (seen - 0.5) / plan.noise_multiplier**2
    ratio: np.ndarray = drawn
    if plan.sample_rate < 1:
        ratio = np.logaddexp(np.log1p(-plan.sample_rate), np.log(plan.sample_rate) + drawn)
    return ratio


def _hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix of +-1, rows orthogonal to each other."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
