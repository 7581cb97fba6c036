"""One audit from beginning to end: which checks are made of an experiment, and of a finished run. Knows experiments."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedq.audit.canaries import canary_check
from fedq.audit.findings import Bounds, Check
from fedq.audit.membership import Membership, membership
from fedq.audit.neighbours import neighbour_checks
from fedq.audit.noise import noise_checks
from fedq.audit.scaling import scaling_check
from fedq.audit.subject import Subject, subject_of, workplace
from fedq.config import rules
from fedq.data import Examples
from fedq.experiment import Experiment
from fedq.int8_delivery import delivered_model
from fedq.quant import Int8Model
from fedq.randomness import generator
from fedq.training import LOSSES, outputs_of

MODEL = "model.onnx"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is looked at."""

    canaries: int = 4000
    pairs: int = 10_000
    seeds: int = 1


def audit_mechanism(experiment: Experiment, effort: Effort, *, tell: Tell) -> tuple[list[Check], list[Bounds]]:
    """All checks of the client that an experiment builds; AuditError where privacy is off."""
    with workplace() as folder:
        subject = subject_of(experiment, folder)
        shards = {f"client {name}": experiment.dataset.train.inputs[rows] for name, rows in experiment.shards.items()}
        parts = {"all training examples": experiment.dataset.train.inputs, **shards}
        rounds = rules.participation_cap(experiment.config)
        checks, bounds = audit_subject(subject, experiment.dataset.train, effort, rounds=rounds, tell=tell)
        return [*checks, scaling_check(parts)], bounds


def audit_subject(
    subject: Subject, examples: Examples, effort: Effort, *, rounds: int, tell: Tell
) -> tuple[list[Check], list[Bounds]]:
    """All checks of one mechanism on data like `examples`; `rounds`: the most that one client may take part in.

    Each of `effort.seeds` audits has coins, pairs and noise of its own; a check's p-value is the least of them, times
    their number.
    """
    checks: list[list[Check]] = []
    bounds: list[Bounds] = []
    for seed in range(effort.seeds):
        of = f"seed {seed}: " if effort.seeds > 1 else ""
        tell(f"{of}{effort.canaries:,} canaries in one run")
        rng = generator(seed, "audit", "coins")
        canaries, bound = canary_check(subject, canaries=effort.canaries, rounds=rounds, rng=rng)
        bounds.append(bound)
        tell(f"{of}noise of a client without examples")
        noise = noise_checks(subject, examples)

        def paired(done: int, of: str = of) -> None:
            tell(f"{of}{done:,} of {effort.pairs:,} pairs of neighbours")

        rng = generator(seed, "audit", "neighbours")
        checks.append(
            [canaries, *noise, *neighbour_checks(subject, examples, pairs=effort.pairs, rng=rng, tell=paired)]
        )
    return [_worst(same) for same in zip(*checks, strict=True)], bounds


def _worst(same: tuple[Check, ...]) -> Check:
    """One check of all seeds."""
    worst = min(same, key=lambda check: check.p_value)
    return Check(worst.name, worst.claim, min(1.0, len(same) * worst.p_value), worst.seen)


def audit_model(experiment: Experiment, folder: Path) -> tuple[list[Membership], list[str]]:
    """Membership scores of a finished run's model before and after int8, and what could not be looked at."""
    dataset, left_out = experiment.dataset, []
    others = dataset.test if dataset.test is not None else dataset.validation
    if others is None or len(others) < 2:
        return [], ["membership: the data has no held-out example to compare with"]
    members = dataset.train
    loss = LOSSES[experiment.config.train.loss]
    fake_quant = delivered_model(experiment)
    models: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "before int8": lambda inputs: np.asarray(outputs_of(fake_quant, inputs))
    }
    if (folder / MODEL).is_file():
        models["after int8"] = Int8Model(folder / MODEL)
    else:
        left_out.append(f"membership after int8: {folder} has no {MODEL}")
    scores = [
        membership(name, outputs(members.inputs), members, outputs(others.inputs), others, loss=loss)
        for name, outputs in models.items()
    ]
    return scores, left_out
