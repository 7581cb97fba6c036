"""One audit from beginning to end: which checks are made of a mechanism, and of an experiment's. Knows experiments."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fedq.audit.canaries import canary_check
from fedq.audit.findings import Bounds, Check
from fedq.audit.neighbours import neighbour_checks
from fedq.audit.noise import noise_checks
from fedq.audit.scaling import scaling_check
from fedq.audit.subject import Subject, subject_of, workplace
from fedq.config import rules
from fedq.data import Examples
from fedq.experiment import Experiment
from fedq.randomness import generator

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is looked at."""

    canaries: int = 4000
    pairs: int = 10_000
    seeds: int = 1
    repeats: int = 0


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
    subject: Subject, examples: Examples, effort: Effort, *, rounds: int, tell: Tell, first_seed: int = 0
) -> tuple[list[Check], list[Bounds]]:
    """All checks of one mechanism on data like `examples`; `rounds`: the most that one client may take part in.

    Each of `effort.seeds` audits has coins, pairs and noise of its own; a check's p-value is the least of them, times
    their number.
    """
    checks: list[list[Check]] = []
    bounds: list[Bounds] = []
    for seed in range(first_seed, first_seed + effort.seeds):
        of = f"seed {seed}: " if effort.seeds > 1 else ""
        tell(f"{of}{effort.canaries:,} canaries in one run")
        rng = generator(seed, "audit", "coins")
        canaries, bound = canary_check(
            subject, canaries=effort.canaries, rounds=rounds, repeats=effort.repeats, rng=rng
        )
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
    return replace(worst, p_value=min(1.0, len(same) * worst.p_value))
