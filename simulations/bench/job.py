"""Whole jobs as a user starts them, beside the same job of peers: wall time of the process, at equal work."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy as np

from simulations.baselines.install import HERE, python_of
from simulations.bench.row import Row
from simulations.bench.timing import FULL, Contender, Effort, medians

Done = dict[str, list[dict[str, float]]]  # contender -> for each run its accuracy, and seconds to the first round

ROUNDS = 10
JOB = [
    "experiment=fashion_mnist",
    f"rounds={ROUNDS}",
    "train.epochs=1",
    "strategy.evaluate_every=1",
    "strategy.max_update_norm=off",
]
PRIVATE = ["privacy=example", "privacy.target_epsilon=null", "privacy.noise_multiplier=1", "privacy.clip_norm=1"]
OURS = {
    "fedq 1": [*JOB, "runtime.workers=1"],
    "fedq 2": [*JOB, "runtime.workers=2"],
    "fedq int8": [*JOB, "runtime.workers=2", "quant=int8", "codec=int8"],
    "fedq dp": [*JOB, "runtime.workers=2", *PRIVATE, "privacy.noise=gaussian"],
    "fedq dp discrete": [*JOB, "runtime.workers=2", *PRIVATE],
}
# Accuracies of ours and of a peer may differ by chance: batches are drawn in another order.
_CHANCE = 0.08
_SHORT = {  # experiments whose second worker must not cost more than it brings
    "demo": ["experiment=demo", "rounds=20"],
    "fashion_mnist": ["experiment=fashion_mnist", "rounds=3"],
    "private_fashion": ["experiment=private_fashion", "rounds=3"],
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


def rows(effort: Effort) -> Iterator[Row]:
    """Fashion-MNIST, 100 clients (Dirichlet 0.5), 10 rounds of 10, batch 32, evaluation on 10,000 images a round."""
    repeats = 5 if effort is FULL else 2
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.npz"
        _write_plan(plan)
        seconds, done = _timed(plan, repeats)
        _check_equal_work(done)
        for name, (ours, peer, words) in COMPARED.items():
            yield Row(name, seconds[ours], seconds[peer], "s", "ours/reference", words)
        yield from _startup(done)
        yield from _workers(repeats)


def _timed(plan: Path, repeats: int) -> tuple[dict[str, float], Done]:
    """(seconds, what each run told) of every contender."""
    done: Done = defaultdict(list)
    flower, pfl = str(python_of("flower")), str(python_of("pfl"))
    peers = {
        "loop": [sys.executable, str(HERE / "loop.py"), str(plan), "2"],
        "pfl 1": [pfl, str(HERE / "pfl_job.py"), str(plan), "2"],
        "pfl 2": [pfl, "-m", "torch.distributed.run", "--nproc-per-node=2", str(HERE / "pfl_job.py"), str(plan), "1"],
        "flower": [flower, str(HERE / "flower_job.py"), str(plan), "plain"],
        "flower dp": [flower, str(HERE / "flower_job.py"), str(plan), "dp"],
    }
    contenders: dict[str, Contender] = {name: partial(_peer, command, name, done) for name, command in peers.items()}
    contenders |= {name: partial(_ours, overrides, name, done) for name, overrides in OURS.items()}
    return medians(contenders, repeats=repeats, warmups=0), done


def _peer(command: list[str], name: str, done: Done) -> None:
    begun = time.time()
    with tempfile.TemporaryDirectory() as folder:
        output = _output(command, Path(folder))
    told = json.loads([line for line in output.splitlines() if line.startswith('{"accuracy"')][-1])
    done[name].append({**told, "startup": told["first_round"] - begun})


def _ours(overrides: list[str], name: str, done: Done) -> None:
    begun = time.time()
    with tempfile.TemporaryDirectory() as folder:
        _output([sys.executable, "-c", "from fedq.cli import main; main()", "run", *overrides], Path(folder))
        (file,) = Path(folder).glob("outputs/*/*/result.json")
        accuracy = json.loads(file.read_text(encoding="utf-8"))["accuracy"]
        # The config is written when all parts are built: right before the first round.
        done[name].append({"accuracy": accuracy, "startup": file.with_name("config.yaml").stat().st_mtime - begun})


def _output(command: list[str], folder: Path) -> str:
    """What the program writes; RuntimeError with its last lines if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    root = str(Path(__file__).resolve().parents[2])
    environment |= {"PYTHONPATH": root if command[0] == sys.executable else "", "FLWR_TELEMETRY_ENABLED": "0"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    if ended.returncode:
        last = "\n".join((ended.stderr or ended.stdout).strip().splitlines()[-5:])
        raise RuntimeError(f"{' '.join(command[:3])} ended with status {ended.returncode}:\n{last}")
    return ended.stdout


def _write_plan(path: Path) -> None:
    """Who trains in which round on which examples, as fedq decides it."""
    from fedq.config import compose
    from fedq.experiment import build
    from fedq.server import CyclicSampler

    experiment = build(compose(JOB))
    names = experiment.identities
    sampler = CyclicSampler(names, seed=experiment.config.seed)
    cohorts = [[names.index(client) for client in sampler.cohort(round, 10)] for round in range(1, ROUNDS + 1)]
    shards = {f"shard{i}": experiment.shards[name] for i, name in enumerate(names)}
    train = np.arange(len(experiment.dataset.train))
    np.savez(path, clients=len(names), cohorts=np.array(cohorts), train=train, **shards)


def _check_equal_work(done: Done) -> None:
    """RuntimeError if a peer made other steps than the loop, or reached another accuracy than chance explains."""
    for name in ("pfl 1", "flower"):
        steps, expected = done[name][-1]["steps"], done["loop"][-1]["steps"]
        if steps != expected:
            raise RuntimeError(f"{name} made {steps} local steps, the plain loop {expected}")
    for ours, peer in (("fedq 1", "loop"), ("fedq 2", "pfl 2"), ("fedq 2", "flower"), ("fedq dp", "flower dp")):
        found = {name: mean(run["accuracy"] for run in done[name]) for name in (ours, peer)}
        if abs(found[ours] - found[peer]) > _CHANCE:
            raise RuntimeError(f"accuracies differ by more than chance: {found}")


def _startup(done: Done) -> Iterator[Row]:
    seconds = {name: median(run["startup"] for run in runs) for name, runs in done.items()}
    for name, peer, words in (
        ("startup", "pfl 1", "pfl-research 0.6 in one process"),
        ("startup_vs_flower", "flower", "Flower 1.41 with Ray"),
    ):
        words = f"from the command to the first round of the float32 job, 1 worker, against {words}"
        yield Row(name, seconds["fedq 1"], seconds[peer], "s", "ours/reference", words)


def _workers(repeats: int) -> Iterator[Row]:
    """Two workers over one, of short runs of the experiments that come with fedq."""
    done: Done = defaultdict(list)
    for name, overrides in _SHORT.items():
        contenders: dict[str, Contender] = {
            str(count): partial(_ours, [*overrides, f"runtime.workers={count}"], name, done) for count in (1, 2)
        }
        seconds = medians(contenders, repeats=repeats, warmups=0)
        words = f"2 workers against 1: fedq run {' '.join(overrides)}"
        yield Row(f"job_workers_{name}", seconds["2"], seconds["1"], "s", "ours/reference", words)
