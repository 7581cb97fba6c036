"""One run from overrides to result: check everything, make the folder, run, deliver. Knows the runtimes by name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedq.app.serving import Link, serve
from fedq.artifacts.delivery import ClientFiles
from fedq.config import Config, ConfigError, compose, own_conf
from fedq.config.client_level import epsilon_budget
from fedq.config.config_file import write_config
from fedq.console import Display
from fedq.experiment import Experiment, build
from fedq.results import Result, new_run_folder
from fedq.runtime import ray
from fedq.runtime.deployment import deploy
from fedq.runtime.local import in_process
from fedq.runtime.pool import Pool
from fedq.runtime.watch import Watch, headline
from fedq.server.strategy import Strategy
from fedq.training.numerics import one_thread

OUTPUTS = "outputs"


def run(
    overrides: Sequence[str] = (),
    *,
    model: Any = None,
    data: Any = None,
    root: str | Path = OUTPUTS,
    progress: bool = True,
) -> Result:
    """Run one experiment and return its result; raises `ConfigError` before anything starts.

    `overrides` are those of `fedq run`. `model` (a class or function that returns an `nn.Module`) and `data` (a
    function, or what it returns) may be objects of the calling script or notebook. Files go under `root`.
    The live display is shown only where there is a terminal.

    >>> import fedq, tempfile
    >>> result = fedq.run(["rounds=1", "clients=2"], root=tempfile.mkdtemp(), progress=False)
    >>> result.accuracy_source, result.rounds
    ('server_test', 1)
    """
    config = compose(overrides, overlay=own_conf())
    if config.runtime.name == "deployment" and model is None and data is None:
        return deploy(config, progress=progress)
    return execute(built(config, model=model, data=data), root=root, progress=progress)


def check(overrides: Sequence[str], *, model: Any = None, data: Any = None, overlay: Path | None = None) -> Experiment:
    """The experiment, built and ready, or `ConfigError` with everything that is wrong; touches no folder."""
    return built(compose(overrides, overlay=overlay or own_conf()), model=model, data=data)


def built(config: Config, *, model: Any = None, data: Any = None) -> Experiment:
    """The same from a composed config; also what this machine lacks for the config's runtime is a problem."""
    if config.runtime.name == "ray" and (found := ray.problems(config.runtime.address)):
        raise ConfigError(found)
    return build(config, model=model, data=data)


def execute(
    experiment: Experiment, *, root: str | Path = OUTPUTS, progress: bool = True, folder: Path | None = None
) -> Result:
    """Run a built experiment."""
    config = experiment.config
    home = folder or new_run_folder(root, config.name)
    write_config(config, home / "config.yaml")
    strategy = experiment.strategy()
    display = Display(
        config.name,
        rounds=config.rounds,
        detail=headline(config),
        epsilon_budget=epsilon_budget(config),
        metric=config.train.metric,
        enabled=progress,
    )
    with one_thread(), display, _link(experiment, strategy, home, display) as link:
        if experiment.quantized is not None and not experiment.quantized.portable:
            display.note(
                "quant.weight_range above 63: x86 without VNNI saturates such sums; the accuracy is this CPU's"
            )
        clients = ClientFiles(home / "clients", home.name)
        return serve(experiment, strategy, link, folder=home, watch=Watch(display), clients=clients)


@contextmanager
def _link(experiment: Experiment, strategy: Strategy, folder: Path, display: Display) -> Iterator[Link]:
    runtime, replied = experiment.config.runtime, display.replies
    if runtime.name == "ray":
        with ray.ray_link(experiment, strategy, folder, replied=replied, tell=display.note) as link:
            yield link
        return
    workers = min(runtime.workers, experiment.config.clients)
    if workers == 1:
        yield in_process(experiment, strategy, folder, replied=replied)
        return
    with Pool(experiment, strategy, folder, workers=workers, replied=replied) as pool:
        yield pool
