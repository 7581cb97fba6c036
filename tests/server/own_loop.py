"""A real experiment through fedq's own loop, without files, display or evaluation."""

from pathlib import Path

import numpy as np

from fedq.experiment import Experiment
from fedq.runtime.local import in_process
from fedq.server import CyclicSampler, Rules, run_rounds
from fedq.server.loop import Scores


def trained(experiment: Experiment, folder: Path, *, cohort: int) -> np.ndarray:
    """The model after `config.rounds` rounds of fedq's own loop."""
    strategy = experiment.strategy()
    link = in_process(experiment, strategy, folder)
    roster, hello = link.meet()
    outcome = run_rounds(
        strategy=strategy,
        sampler=CyclicSampler(list(roster.nodes), seed=experiment.config.seed),
        master=experiment.initial,
        gather=link.gather,
        score=lambda round, master: Scores(),
        watch=lambda round: None,
        rules=Rules(experiment.config.rounds, cohort),
        hello=hello,
    )
    return outcome.master
