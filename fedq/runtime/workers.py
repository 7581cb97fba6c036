"""How many processes train clients: the number in the config, or as many as pay. Knows cores and seconds."""

import os
import time
from pathlib import Path

from fedq.config import Config, public
from fedq.config.rules import AUTO, OBJECT
from fedq.experiment import Experiment

_LONGEST_START = 10.0  # seconds; a process that has worked for long tells nothing about how long another one starts


def asked_workers(config: Config) -> int | None:
    """The number of processes that the config names, this one included; None: auto."""
    workers = config.runtime.workers
    return None if workers == AUTO else min(int(workers), config.clients)


def workers_for(experiment: Experiment) -> tuple[int, str]:
    """(processes that train clients, this one included; why so many)."""
    config, cohort = experiment.config, public.cohort_size(experiment.config)
    if (asked := asked_workers(config)) is not None:
        return asked, "runtime.workers"
    if any(str(group.get("_target_")).startswith(OBJECT) for group in (config.model, config.data)):
        return 1, "model or data is an object of this process"
    if experiment.trainer.hardware.device.type != "cpu":
        return 1, f"clients share the device {experiment.trainer.hardware.device}"
    most = min(physical_cores(), cohort)
    if most == 1:
        return 1, "one physical core" if cohort > 1 else "one client a round"
    # Another process takes about as long to start as this one took to come here.
    start, training = min(time.process_time(), _LONGEST_START), expected_seconds(experiment)
    if training * (1 - 1 / most) <= start:
        return 1, f"training takes about {training:.0f} s, too short for another process to pay"
    return most, "as many as physical cores" if most < cohort else "as many as clients a round"


def expected_seconds(experiment: Experiment) -> float:
    """Estimated time of all local training in one process, from the time of one step on made-up data."""
    config, recipe, plan = experiment.config, experiment.trainer.recipe, experiment.plan
    examples = sum(map(len, experiment.shards.values())) // max(1, len(experiment.shards))
    steps = recipe.num_steps(max(examples, 1)) if plan is None else plan.steps
    step = experiment.trainer.seconds_of_a_step(experiment.dataset.train)
    return config.rounds * public.cohort_size(config) * steps * step * (1 if plan is None else 2)


def physical_cores() -> int:
    """Cores that this process may use, hardware threads of one core counted once."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in usable:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:  # not Linux, or hidden in a container
            siblings.add(str(cpu))
    return len(siblings)
