"""White-box canaries: examples with known, clipped gradients, and guesses about them from one run.

The canaries' model is linear with an absolute loss. So an example's gradient is the outer product of its input and the
signs of its residual, for any weights. Inputs with a single value, and signs from a Hadamard matrix, make the gradients
orthogonal to each other. Each noised sum then gives separate evidence on each canary, as in a large model. The
mechanism is the audited client's own code with the run's plan; `neighbours` tests its own model and data.
"""

from dataclasses import replace

import numpy as np
from torch import nn

from fedq.audit.bounds import Errors, GuessesByShare
from fedq.audit.subject import AuditError, Subject
from fedq.audit.verdict import guess_by_evidence
from fedq.data import Examples
from fedq.privacy import DPPlan
from fedq.training import Recipe, Trainer, layout_of, read_vector

_SIGNS = 64  # outputs of the linear model
_STEEP = 10.0  # length of a canary's gradient in clip norms; it must be clipped to have length one
_FAR = 1e6  # targets that no output comes near


def canary_subject(subject: Subject, canaries: int) -> tuple[Subject, Examples]:
    """(the subject with the canaries' model instead of its own, all canaries)."""
    width = -(-canaries // _SIGNS)
    model = nn.Linear(width, _SIGNS, bias=False)
    nn.init.zeros_(model.weight)
    layout = layout_of(model)
    recipe = Recipe(1, "SGD", 1e-3, 1, steps=subject.plan.steps, loss="l1", metric="mae")
    trainer = Trainer(model, layout, recipe, mechanism=subject.trainer.mechanism)
    signs = _hadamard(_SIGNS)
    which = np.arange(width * _SIGNS)[:canaries]
    inputs = np.zeros((canaries, width), np.float32)
    # The loss is a mean over outputs, so the length of a canary's gradient is its input over sqrt(outputs).
    inputs[np.arange(canaries), which // _SIGNS] = _STEEP * subject.plan.clip_norm * np.sqrt(_SIGNS)
    examples = Examples(inputs, (-_FAR * signs[which % _SIGNS]).astype(np.float32))
    own = replace(subject, trainer=trainer, weights=read_vector(model, layout), prepare=lambda examples: examples)
    return own, examples


def white_box_run(subject: Subject, *, canaries: int, rounds: int, rng: np.random.Generator) -> GuessesByShare:
    """Toss the coins, train `rounds` rounds on the chosen canaries, and guess the coins from all steps."""
    own, examples = canary_subject(subject, canaries)
    included = rng.random(canaries) < 0.5
    return guess_by_evidence(_score(own, examples[np.flatnonzero(included)], rounds)[:canaries], included)


def repeated_runs(subject: Subject, *, runs: int, rounds: int, rng: np.random.Generator) -> Errors:
    """Errors over independent runs, each with one canary or none, by a coin."""
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
    """Evidence on every canary of the model from a run of `rounds` rounds on these examples."""
    scores = np.zeros(own.trainer.layout.size)
    random = own.make_random()  # one source for all rounds, as in a client
    for _ in range(rounds):
        answer = own.answer(chosen, random)
        if answer.refused is not None:
            raise AuditError(f"a client with the canaries does not answer: {answer.refused}")
        for gradient in answer.gradients:
            scores += _evidence(gradient, own.plan)
    return scores


def _evidence(gradient: np.ndarray, plan: DPPlan) -> np.ndarray:
    """Log-likelihood ratio that each canary is in the data, from one step; float64 (values of the model,).

    By the Neyman-Pearson lemma no other score is stronger, if the mechanism follows its plan.
    """
    along = _hadamard(_SIGNS) @ gradient.reshape(_SIGNS, -1)  # row: signs, column: input
    # 1 where the canary was drawn, else 0, plus noise with the noise multiplier as its std.
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
