"""One complete audit: the list of checks for a mechanism, and for the mechanism of an experiment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedq.audit import accountant
from fedq.audit.black_box import black_box_run
from fedq.audit.canaries import repeated_runs, white_box_run
from fedq.audit.findings import Bounds, Check
from fedq.audit.hostile_weights import NOT_EXACT, shares_check
from fedq.audit.neighbours import neighbour_checks
from fedq.audit.noise import noise_checks
from fedq.audit.scaling import scaling_check
from fedq.audit.secrecy import secrecy_checks
from fedq.audit.subject import Subject, subject_of, workplace
from fedq.audit.verdict import judged, refuted_epsilon
from fedq.config import public
from fedq.core.randomness import generator
from fedq.data import Examples
from fedq.experiment import Experiment
from fedq.privacy import DPPlan
from fedq.privacy.mechanisms import NOISES

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """The size of an audit."""

    canaries: int = 4000
    pairs: int = 1_000
    seeds: int = 1
    repeats: int = 0  # runs with one canary or without
    black_box: int = 0  # canaries in the data of one client over all rounds


def audit_mechanism(
    experiment: Experiment, effort: Effort, *, tell: Progress
) -> tuple[list[Check], list[Bounds], list[str]]:
    """(checks, bounds, checks that were left out and why) for the client of an experiment.

    `tell`: called with each step of the progress. AuditError if privacy is off.
    """
    with workplace() as folder:
        subject, train = subject_of(experiment, folder), experiment.dataset.train
        shards = {f"client {name}": train.inputs[rows] for name, rows in experiment.shards.items()}
        rounds = public.participation_cap(experiment.config)
        plans = list(experiment.plans.values())
        checks, bounds = audit_subject(subject, train, effort, rounds=rounds, tell=tell, plans=plans)
        checks.append(scaling_check({"all training examples": train.inputs, **shards}))
        left_out = [] if NOISES[subject.plan.noise].exact else [NOT_EXACT]
        if (why := accountant.why_target_not_checked(subject.plan)) is not None:
            left_out.append(f"target: {why}")
        if effort.black_box:
            shard = train[experiment.shards[experiment.identities[0]]]

            def trained(round: int) -> None:
                tell(f"round {round} of {rounds} with canaries among the data")

            rng = generator(0, "audit", "black box")
            seen = black_box_run(subject, shard, canaries=effort.black_box, rounds=rounds, rng=rng, tell=trained)
            check, bound = judged(seen, subject.plan, rounds=rounds, box="black-box")
            checks, bounds = [check, *checks], [*bounds, bound]
        return checks, bounds, left_out


def audit_subject(
    subject: Subject,
    examples: Examples,
    effort: Effort,
    *,
    rounds: int,
    tell: Progress,
    first_seed: int = 0,
    plans: Sequence[DPPlan] = (),
) -> tuple[list[Check], list[Bounds]]:
    """(checks, bounds) of one mechanism on data like `examples`.

    `rounds`: largest number of rounds of one client. `plans`: the plans of all clients, if some have their own budgets.
    Each of the `effort.seeds` audits has its own coins, pairs and noise; a check's p-value is the smallest of them,
    times their number (Bonferroni).
    """
    checks: list[list[Check]] = []
    bounds: list[Bounds] = []
    for seed in range(first_seed, first_seed + effort.seeds):
        of = f"seed {seed}: " if effort.seeds > 1 else ""

        def paired(done: int, of: str = of) -> None:
            tell(f"{of}{done:,} of {effort.pairs:,} pairs of neighbours")

        tell(f"{of}{effort.canaries:,} canaries in one run")
        coins, pairs, others = (generator(seed, "audit", use) for use in ("coins", "neighbours", "others"))
        seen = white_box_run(subject, canaries=effort.canaries, rounds=rounds, rng=coins)
        check, bound = judged(seen, subject.plan, rounds=rounds, box="white-box")
        if effort.repeats:
            tell(f"{of}{effort.repeats:,} runs with one canary or none")
            errors = repeated_runs(subject, runs=effort.repeats, rounds=rounds, rng=coins)
            repeated = refuted_epsilon(errors, subject.plan, rounds)
            bound = replace(bound, repeats=effort.repeats, repeated=repeated)
        bounds.append(bound)
        tell(f"{of}noise of a client without examples")
        noise = noise_checks(subject, examples)
        tell(f"{of}where random numbers come from")
        secret = secrecy_checks(subject, examples, rng=others)
        same = neighbour_checks(subject, examples, pairs=effort.pairs, rng=pairs, tell=paired)
        if NOISES[subject.plan.noise].exact:
            tell(f"{of}weights of a hostile server")
            same.append(shares_check(subject, examples, rng=others))
        checks.append([check, *noise, *secret, *same])
    found = [_worst(same) for same in zip(*checks, strict=True)]
    if accountant.available() and (target := accountant.target_check(plans or [subject.plan], rounds=rounds)):
        found.append(target)
    return found, bounds


def _worst(same: tuple[Check, ...]) -> Check:
    """One check for all seeds."""
    worst = min(same, key=lambda check: check.p_value)
    return replace(worst, p_value=min(1.0, len(same) * worst.p_value))
