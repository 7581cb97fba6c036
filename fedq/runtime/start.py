"""One run from overrides to result: check everything, make the folder, run, write artifacts. Knows all runtimes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedq.app.serving import Link, serve
from fedq.artifacts.run_artifacts import ClientFiles
from fedq.config import Config, ConfigError, compose, own_conf, problems
from fedq.config.config_file import write_config
from fedq.core.wording import plural
from fedq.experiment import Experiment, build
from fedq.results import Result, new_run_folder
from fedq.runtime import ray
from fedq.runtime.deployment import deploy
from fedq.runtime.local import in_process
from fedq.runtime.observers import Observer, Observers, RunStart
from fedq.runtime.pool import Pool
from fedq.runtime.worker_processes import WorkerProcesses
from fedq.runtime.workers import asked_workers, workers_for
from fedq.server.strategy import Strategy
from fedq.training.numerics import one_thread

OUTPUTS = "outputs"


def run_observed(
    overrides: Sequence[str] = (),
    *,
    model: Any = None,
    data: Any = None,
    root: str | Path = OUTPUTS,
    observers: Sequence[Observer] = (),
) -> Result:
    """`fedq.run` without its own live view."""
    config = compose(overrides, overlay=own_conf())
    if config.runtime.name == "deployment" and model is None and data is None:
        return deploy(config, observers=observers)
    with early_workers(config if model is None and data is None else None) as processes:
        experiment = built(config, model=model, data=data)
        return execute(experiment, root=root, observers=observers, processes=processes)


def check(overrides: Sequence[str], *, model: Any = None, data: Any = None, overlay: Path | None = None) -> Experiment:
    """The built experiment, or `ConfigError` with all problems; writes no files."""
    return built(compose(overrides, overlay=overlay or own_conf()), model=model, data=data)


def built(config: Config, *, model: Any = None, data: Any = None) -> Experiment:
    """The same from a composed config; missing requirements of the config's runtime are problems too."""
    if config.runtime.name == "ray" and (found := ray.problems(config.runtime.address)):
        raise ConfigError(found)
    return build(config, model=model, data=data)


@contextmanager
def early_workers(config: Config | None) -> Iterator[WorkerProcesses | None]:
    """Worker processes of a config that names their number: they build the experiment while this process does."""
    if config is not None and config.runtime.name == "local" and not problems(config):
        count = asked_workers(config) or 1
        if count > 1:
            with WorkerProcesses(config, count - 1) as processes:
                yield processes
            return
    yield None


def execute(
    experiment: Experiment,
    *,
    root: str | Path = OUTPUTS,
    observers: Sequence[Observer] = (),
    folder: Path | None = None,
    processes: WorkerProcesses | None = None,
) -> Result:
    """Run a built experiment. `processes`: those of `early_workers`, if they were started."""
    config, watchers = experiment.config, Observers(observers)
    home = folder or new_run_folder(root, config.name)
    write_config(config, home / "config.yaml")
    strategy = experiment.strategy()
    with (
        one_thread(),
        watchers.watching(RunStart.of(config, home)) as end,
        _link(experiment, strategy, home, watchers, processes) as link,
    ):
        if experiment.quantized is not None and not experiment.quantized.portable:
            watchers.on_note(
                "quant.weight_range above 63: x86 without VNNI saturates such sums; the accuracy is this CPU's"
            )
        clients = ClientFiles(home / "clients", home.name)
        return end(serve(experiment, strategy, link, folder=home, watch=watchers.on_round, clients=clients))


@contextmanager
def _link(
    experiment: Experiment,
    strategy: Strategy,
    folder: Path,
    watchers: Observers,
    processes: WorkerProcesses | None,
) -> Iterator[Link]:
    runtime, replied = experiment.config.runtime, watchers.on_replies
    if runtime.name == "ray":
        with ray.ray_link(experiment, strategy, folder, replied=replied, tell=watchers.on_note) as link:
            yield link
        return
    if processes is None:
        workers, why = workers_for(experiment)
        watchers.on_note(f"{plural(workers, 'worker')}: {why}")
        if workers == 1:
            yield in_process(experiment, strategy, folder, replied=replied)
            return
        processes = WorkerProcesses(experiment.config, workers - 1)
    with processes:
        yield Pool(experiment, strategy, folder, processes=processes, replied=replied)
