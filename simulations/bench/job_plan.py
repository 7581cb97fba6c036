"""Writes the plan of the benchmark `job`: what fedq trains, for programs that do not know fedq."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Work:
    """What every contender must have done at the end."""

    cohorts: list[list[str]]  # for each round the names of its clients, sorted
    steps: int  # local steps of all clients in all rounds
    private_steps: int  # the same under DP-SGD


def write_plan(path: Path, overrides: Sequence[str], private: Sequence[str]) -> Work:
    """Write the plan of the experiment of `overrides`, and of `private` where clients train under DP.

    The .npz file is read by `simulations.baselines.job.Plan`, which says what it holds. ValueError if a client would
    train twice, because the plan holds one order of examples for each client.
    """
    from fedq.config import compose, public
    from fedq.core.randomness import generator
    from fedq.experiment import build
    from fedq.server import CyclicSampler

    experiment = build(compose(overrides))
    config, names = experiment.config, experiment.identities
    sampler = CyclicSampler(names, seed=config.seed)
    size = public.cohort_size(config)
    cohorts = [sampler.cohort(round, size) for round in range(1, config.rounds + 1)]
    if public.participation_cap(config) > 1:
        raise ValueError(
            f"rounds={config.rounds} of {size} among {len(names)} clients: each client may train once only; "
            "use fewer rounds"
        )
    shards = {name: experiment.shards[name] for name in names}
    for round, cohort in enumerate(cohorts, start=1):
        for name in cohort:
            order = generator(config.seed, "batches", round, name).permutation(len(shards[name]))
            shards[name] = shards[name][order]
    private_steps = public.dp_steps(compose(private))
    np.savez(
        path,
        clients=len(names),
        cohorts=np.array([[names.index(name) for name in cohort] for cohort in cohorts]),
        initial=experiment.initial,
        private_steps=private_steps,
        **{f"shard{i}": shards[name] for i, name in enumerate(names)},
    )
    trained = [len(shards[name]) for cohort in cohorts for name in cohort]
    return Work(
        cohorts=[sorted(cohort) for cohort in cohorts],
        steps=sum(experiment.trainer.recipe.num_steps(examples) for examples in trained),
        private_steps=private_steps * len(trained),
    )
