"""White-box canaries: examples whose gradients are known, clipped ones, and what is guessed of them from one run.

The canaries' model is linear with an absolute loss, so an example's gradient is the outer product of its input and the
signs of its residual, whatever the weights. Inputs with one value and signs from a Hadamard matrix make gradients that
are orthogonal to each other: the noised sums tell of each canary alone, as they would of one in a large model. The
mechanism is the audited client's own code at the run's own plan; its model and data are `neighbours`' business.
"""

from dataclasses import replace

import numpy as np
from torch import nn

from fedq.audit.bounds import Guesses, curve_p_value, epsilon_bound, mechanism_bound
from fedq.audit.curves import curve_of, epsilon_of
from fedq.audit.findings import Bounds, Check
from fedq.audit.subject import AuditError, Subject
from fedq.data import Examples
from fedq.privacy import Mechanism
from fedq.training import Recipe, Trainer, layout_of, read_vector

FEWEST, CONFIDENCE = 200, 0.95
GUESSED = 0.1  # share of the coins that are guessed: the surest; of all that were tried it gives the largest bounds
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
    trainer = Trainer(model, layout, recipe)
    signs = _hadamard(_SIGNS)
    which = np.arange(width * _SIGNS)[:canaries]
    inputs = np.zeros((canaries, width), np.float32)
    # The loss is a mean over outputs, so the gradient of a canary is its input over sqrt(outputs) long.
    inputs[np.arange(canaries), which // _SIGNS] = _STEEP * subject.plan.clip_norm * np.sqrt(_SIGNS)
    examples = Examples(inputs, (-_FAR * signs[which % _SIGNS]).astype(np.float32))
    own = replace(subject, trainer=trainer, weights=read_vector(model, layout), prepare=lambda examples: examples)
    return own, examples


def one_run(subject: Subject, *, canaries: int, rounds: int, rng: np.random.Generator) -> Guesses:
    """Throw the coins, train `rounds` times on those whose coin fell so, and guess the surest from all seen."""
    own, examples = canary_subject(subject, canaries)
    included = rng.random(canaries) < 0.5
    seen = np.zeros(own.trainer.layout.size)
    chosen = examples[np.flatnonzero(included)]
    random = own.make_random()  # one client's own, in all rounds
    for _ in range(rounds):
        answer = own.answer(chosen, random)
        if answer.refused is not None:
            raise AuditError(f"a client with the canaries does not answer: {answer.refused}")
        for gradient in answer.gradients:
            seen += gradient
    scores = _scores(seen, canaries)
    order = np.argsort(scores, kind="stable")
    half = max(1, round(min(canaries, max(GUESSED * canaries, FEWEST / 2)) / 2))
    out, within = order[:half], order[-half:]
    correct = int((~included[out]).sum() + included[within].sum())
    return Guesses(canaries, 2 * half, correct)


def canary_check(subject: Subject, *, canaries: int, rounds: int, rng: np.random.Generator) -> tuple[Check, Bounds]:
    """One run at the plan's own noise, rate and steps; `rounds`: the most that any client may take part in."""
    plan = subject.plan
    claimed = Mechanism(plan.noise_multiplier, plan.sample_rate, plan.steps * rounds)
    seen = one_run(subject, canaries=canaries, rounds=rounds, rng=rng)
    p = curve_p_value(seen, curve_of(claimed, accountant=plan.accountant))
    bounds = Bounds(
        claimed_epsilon=epsilon_of(claimed, plan.delta, accountant=plan.accountant),
        delta=plan.delta,
        confidence=CONFIDENCE,
        canaries=canaries,
        guesses=seen.guesses,
        correct=seen.correct,
        one_run=epsilon_bound(seen, delta=plan.delta, confidence=CONFIDENCE),
        one_run_curve=mechanism_bound(
            seen, claimed, delta=plan.delta, confidence=CONFIDENCE, accountant=plan.accountant
        ),
    )
    told = f"{seen.correct} of {seen.guesses} guesses right, of {canaries:,} canaries"
    return Check("canaries", "one run says no more of its canaries than its plan's curve allows", p, told), bounds


def _scores(seen: np.ndarray, canaries: int) -> np.ndarray:
    """The seen sum along each canary's own direction; float64 (canaries,), in any unit."""
    along = _hadamard(_SIGNS) @ seen.reshape(_SIGNS, -1)  # row: signs, column: input
    scores: np.ndarray = along.T.ravel()[:canaries]
    return scores


def _hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix of +-1, rows orthogonal to each other."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
