"""How close an audit's lower bound on epsilon comes to the claim, by one run of the client's own code."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fedq.audit import Subject, workplace
from fedq.audit.canaries import repeated_runs, white_box_run
from fedq.audit.curves import epsilon_of
from fedq.audit.verdict import judged, refuted_epsilon
from fedq.codec import Int8
from fedq.privacy import DPPlan, SecureRandom, calibrate
from fedq.training import Recipe, Trainer, layout_of, read_vector
from simulations.bench.row import Row

_DELTA, _STEPS, _CANARIES, _RUNS = 1e-5, 4, 16_384, 400
_SAMPLED_RATE, _SAMPLED_STEPS, _SAMPLED_CANARIES = 0.2, 50, 8192


def rows() -> Iterator[Row]:
    """At epsilon 8, which is to reach half the claim, and at 3 and 1; full batches, then a sampled plan."""
    for epsilon, name in ((8.0, "audit_lower_bound"), (3.0, "audit_lower_bound_eps3"), (1.0, "audit_lower_bound_eps1")):
        yield _row(name, epsilon, rate=1.0, steps=_STEPS, canaries=_CANARIES)
    yield _repeated("audit_lower_bound_repeated", 8.0)
    yield _row("audit_lower_bound_sampled", 8.0, rate=_SAMPLED_RATE, steps=_SAMPLED_STEPS, canaries=_SAMPLED_CANARIES)


@contextmanager
def _client(epsilon: float, *, rate: float, steps: int) -> Iterator[Subject]:
    """fedq's own client at a plan calibrated to `epsilon`; its model gives way to the canaries'."""
    noise = calibrate(target_epsilon=epsilon, delta=_DELTA, sample_rate=rate, steps=steps)
    plan = DPPlan(
        noise_multiplier=noise,
        clip_norm=1.0,
        sample_rate=rate,
        steps=steps,
        nominal_examples=1000,
        target_epsilon=math.inf,
        delta=_DELTA,
    )
    model = nn.Linear(1, 1)
    trainer = Trainer(model, layout_of(model), Recipe(1, "SGD", 1.0, 1, steps=steps))
    with workplace() as folder:
        torch.set_num_threads(1)
        yield Subject(plan, trainer, Int8(), read_vector(model, trainer.layout), SecureRandom, folder=folder)


def _repeated(name: str, epsilon: float) -> Row:
    """The classical audit: many runs, one canary."""
    with _client(epsilon, rate=1.0, steps=_STEPS) as subject:
        errors = repeated_runs(subject, runs=_RUNS, rounds=1, rng=np.random.default_rng(0))
        bound, claimed = refuted_epsilon(errors, subject.plan, 1), epsilon_of(subject.plan.mechanism, _DELTA)
    words = f"the same by {_RUNS} runs of {_STEPS} full-batch steps with one canary or none"
    return Row(name, bound, claimed, "epsilon", "ours/reference", words)


def _row(name: str, epsilon: float, *, rate: float, steps: int, canaries: int) -> Row:
    """One run."""
    with _client(epsilon, rate=rate, steps=steps) as subject:
        seen = white_box_run(subject, canaries=canaries, rounds=1, rng=np.random.default_rng(0))
        _, bounds = judged(seen, subject.plan, rounds=1, box="white-box")
    sampled = "full batches, as sampling makes one run's bound looser" if rate == 1 else f"sampling at rate {rate:g}"
    words = (
        f"lower bound on epsilon ({bounds.confidence:.0%}, f-DP in one run) over the claimed one at delta {_DELTA:g}: "
        f"white-box, {canaries:,} orthogonal canary gradients in {steps} steps of fedq's own client, {sampled}; "
        f"of any mechanism (Steinke et al.) {bounds.one_run:.2f}"
    )
    return Row(name, bounds.one_run_curve, bounds.claimed_epsilon, "epsilon", "ours/reference", words)
