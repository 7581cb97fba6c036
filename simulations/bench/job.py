"""Whole jobs as a user starts them, beside the same job of peers: wall time of the process, at equal work."""

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from simulations.baselines.install import HERE, NAMES, python_of
from simulations.bench.job_plan import Work, write_plan
from simulations.bench.job_processes import Outcome, run_fedq, run_peer
from simulations.bench.row import PeerAbsentError, Row
from simulations.bench.timing import FULL, Contender, Effort, medians

Outcomes = Mapping[str, Sequence[Outcome]]  # contender -> its runs

JOB = [
    "experiment=fashion_mnist",
    "rounds=10",
    "train.epochs=1",
    "strategy.evaluate_every=1",
    "strategy.max_update_norm=off",  # no peer bounds updates
]
# The rate of 32 examples in the mean shard of 540, as a fraction that Opacus' loader takes too: 17 steps of 1/17.
PRIVATE = [
    *JOB,
    "privacy=example",
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=1",
    "privacy.clip_norm=1",
    f"privacy.sample_rate={1 / 17}",
]
OURS = {
    "fedq 1": [*JOB, "runtime.workers=1"],
    "fedq 2": [*JOB, "runtime.workers=2"],
    "fedq int8": [*JOB, "runtime.workers=2", "quant=int8", "codec=int8"],
    "fedq dp": [*PRIVATE, "runtime.workers=2", "privacy.noise=gaussian"],
    "fedq dp discrete": [*PRIVATE, "runtime.workers=2"],
}
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
# Contender -> the environment it needs, and its command after the interpreter.
PEERS = {
    "loop": (None, ["loop.py", "PLAN", "2"]),
    "pfl 1": ("pfl", ["pfl_job.py", "PLAN", "2"]),
    "pfl 2": ("pfl", [*TORCHRUN, "pfl_job.py", "PLAN", "1"]),
    "flower": ("flower", ["flower_job.py", "PLAN", "plain"]),
    "flower dp": ("flower", ["flower_job.py", "PLAN", "dp"]),
}
COMPARED = {
    "job_vs_loop_1": ("fedq 1", "loop", "1 worker against a plain loop in torch of 2 threads"),
    "job_vs_loop_2": ("fedq 2", "loop", "2 workers against a plain loop in torch of 2 threads"),
    "job_vs_pfl_1": ("fedq 1", "pfl 1", "1 worker against pfl-research 0.6 in one process of 2 threads"),
    "job_vs_pfl_2": ("fedq 2", "pfl 2", "2 workers against pfl-research 0.6 in two processes"),
    "job_vs_flower_2": ("fedq 2", "flower", "2 workers against Flower 1.41 with two Ray actors"),
    "job_dp_vs_flower_opacus_2": (
        "fedq dp",
        "flower dp",
        "DP-SGD with Gaussian noise, 2 workers, against Flower, Ray and Opacus",
    ),
    "job_dp_discrete_vs_flower_opacus_2": (
        "fedq dp discrete",
        "flower dp",
        "DP-SGD with discrete noise, 2 workers, against Flower, Ray and Opacus",
    ),
    "job_int8_vs_float32": (
        "fedq int8",
        "fedq 2",
        "QAT, int8 both ways, int8 model delivered and measured, against our own float32 job",
    ),
}
STARTUP = {
    "startup": ("fedq 1", "pfl 1", "pfl-research 0.6 in one process"),
    "startup_vs_flower": ("fedq 1", "flower", "Flower 1.41 with Ray"),
}
SHORT = {  # experiments whose second worker must not cost more than it brings
    "demo": ["experiment=demo", "rounds=20"],
    "fashion_mnist": ["experiment=fashion_mnist", "rounds=3"],
    "private_fashion": ["experiment=private_fashion", "rounds=3"],
}
# Largest difference of final accuracies. Without DP all start from the same weights and see the same batches, so only
# rounding differs. Under DP each program draws its own batches and noise.
SAME_BATCHES, OWN_NOISE = 0.02, 0.08
_COUNTED = {"loop", "pfl 1", "pfl 2", "flower", "fedq 1", "fedq 2"}


class UnequalWorkError(RuntimeError):
    """A contender did other work than the plan says, so that its time cannot be compared."""


def rows(effort: Effort) -> Iterator[Row]:
    """Fashion-MNIST, 100 clients (Dirichlet 0.5), 10 rounds of 10, batch 32, evaluation on 10,000 images a round.

    After all other rows, PeerAbsentError if a peer could not be installed.
    """
    repeats = 5 if effort is FULL else 2
    environments, absent = _environments()
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.npz"
        work = write_plan(plan, JOB, PRIVATE)
        runs = {name: partial(run_fedq, overrides) for name, overrides in OURS.items()}
        runs |= {name: partial(run_peer, command) for name, command in peer_commands(plan, environments).items()}
        seconds, outcomes = _timed(runs, repeats)
    check_equal_work(outcomes, work)
    yield from compared(seconds, outcomes)
    yield from _workers(repeats)
    if absent:
        raise PeerAbsentError("\n".join(absent))


def _environments() -> tuple[dict[str, str], list[str]]:
    """(environment -> its interpreter, why others are missing)."""
    found, absent = {}, []
    for name in NAMES:
        try:
            found[name] = python_of(name)
        except PeerAbsentError as problem:
            absent.append(str(problem))
    return found, absent


def peer_commands(plan: Path, environments: Mapping[str, str]) -> dict[str, list[str]]:
    """The command of each peer whose environment there is; a peer that needs none has this interpreter."""
    commands = {}
    for name, (environment, words) in PEERS.items():
        python = sys.executable if environment is None else environments.get(environment)
        if python is not None:
            words = [str(plan) if word == "PLAN" else word for word in words]
            commands[name] = [python, *(str(HERE / word) if word.endswith(".py") else word for word in words)]
    return commands


def _timed(runs: Mapping[str, Any], repeats: int) -> tuple[dict[str, float], Outcomes]:
    """(median seconds, every outcome) of all contenders, which take turns."""
    outcomes: dict[str, list[Outcome]] = defaultdict(list)

    def turn(name: str) -> float:
        outcome = runs[name]()
        outcomes[name].append(outcome)
        told = f"{name}: {outcome.seconds:.1f} s, accuracy {outcome.accuracy:.4f}"
        print(told, file=sys.stderr, flush=True)
        return float(outcome.seconds)

    contenders: dict[str, Contender] = {name: partial(turn, name) for name in runs}
    return medians(contenders, repeats=repeats, warmups=0), outcomes


def check_equal_work(outcomes: Outcomes, work: Work) -> None:
    """UnequalWorkError if a contender trained other clients, made other steps, or is less accurate than the others."""
    for name, (outcome, *_) in outcomes.items():
        expected = work.private_steps if "dp" in name else work.steps
        if outcome.steps not in (None, expected):
            raise UnequalWorkError(f"{name} made {outcome.steps} local steps; the plan has {expected}")
        if outcome.cohorts not in (None, work.cohorts):
            raise UnequalWorkError(f"{name} trained other clients than the plan: {outcome.cohorts}")
    found = {name: mean(outcome.accuracy for outcome in runs) for name, runs in outcomes.items()}
    for group, largest in (
        ([name for name in found if name in _COUNTED], SAME_BATCHES),
        ([name for name in found if "dp" in name], OWN_NOISE),
    ):
        values = {name: found[name] for name in group}
        if max(values.values()) - min(values.values()) > largest:
            raise UnequalWorkError(f"accuracies differ by more than {largest}, so the work was not equal: {values}")


def compared(seconds: Mapping[str, float], outcomes: Outcomes) -> Iterator[Row]:
    """A row for each comparison whose two contenders ran."""
    for name, (ours, peer, words) in COMPARED.items():
        if ours in seconds and peer in seconds:
            accuracies = " and ".join(f"{mean(run.accuracy for run in outcomes[who]):.1%}" for who in (ours, peer))
            yield Row(name, seconds[ours], seconds[peer], "s", "ours/reference", f"{words}; accuracy {accuracies}")
    startup = {name: median(run.startup for run in runs) for name, runs in outcomes.items()}
    for name, (ours, peer, words) in STARTUP.items():
        if ours in startup and peer in startup:
            words = f"from the command to the first round of the float32 job, 1 worker, against {words}"
            yield Row(name, startup[ours], startup[peer], "s", "ours/reference", words)


def _workers(repeats: int) -> Iterator[Row]:
    """Two workers over one, in short runs of experiments that come with fedq."""
    for name, overrides in SHORT.items():
        runs = {
            f"{name}, {count} worker(s)": partial(run_fedq, [*overrides, f"runtime.workers={count}"])
            for count in (1, 2)
        }
        one, two = _timed(runs, repeats)[0].values()
        words = f"2 workers against 1: fedq run {' '.join(overrides)}"
        yield Row(f"job_workers_{name}", two, one, "s", "ours/reference", words)
