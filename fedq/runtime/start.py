"""One run from overrides to result: check everything, make the folder, run, deliver. Knows the runtimes by name."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedq import wire
from fedq.app import Link, serve
from fedq.config import Config, compose, own_conf, rules
from fedq.experiment import Experiment, build
from fedq.results import Display, Result, RoundRow, new_run_folder
from fedq.results.wording import one_line
from fedq.runtime.local import InProcess, Replied
from fedq.runtime.pool import Pool
from fedq.server.strategy import QuantizedFedAvg
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
    return execute(check(overrides, model=model, data=data), root=root, progress=progress)


def check(overrides: Sequence[str], *, model: Any = None, data: Any = None, overlay: Path | None = None) -> Experiment:
    """The experiment, built and ready, or `ConfigError` with everything that is wrong; touches no folder."""
    return build(compose(overrides, overlay=overlay or own_conf()), model=model, data=data)


def execute(
    experiment: Experiment, *, root: str | Path = OUTPUTS, progress: bool = True, folder: Path | None = None
) -> Result:
    """Run a built experiment."""
    config = experiment.config
    home = folder or new_run_folder(root, config.name)
    write_config(config, home / "config.yaml")
    strategy = experiment.strategy()
    budget = None if experiment.plan is None else config.privacy.target_epsilon
    display = Display(
        config.name,
        rounds=config.rounds,
        detail=headline(experiment),
        epsilon_budget=budget,
        metric=config.train.metric,
        enabled=progress,
    )
    with one_thread(), display, _link(experiment, strategy, home, display.replies) as link:
        if experiment.quantized is not None and not experiment.quantized.portable:
            display.note(
                "quant.weight_range above 63: x86 without VNNI saturates such sums; the accuracy is this CPU's"
            )
        return serve(experiment, strategy, link, folder=home, watch=_Watch(display))


class _Watch:
    """Shows every row, and says why clients were lost the first time that it happens for a reason."""

    def __init__(self, display: Display) -> None:
        self._display, self._known = display, set[str]()

    def __call__(self, row: RoundRow) -> None:
        for reason in sorted(set(row.reasons) - self._known):
            meaning = {**wire.REFUSALS, **wire.REJECTIONS}.get(reason, "a packet that does not decode")
            self._display.note(f"round {row.round}: {row.reasons[reason]} lost, {reason}: {meaning}")
        self._known |= set(row.reasons)
        self._display.row(row)


@contextmanager
def _link(experiment: Experiment, strategy: QuantizedFedAvg, folder: Path, replied: Replied) -> Iterator[Link]:
    workers = min(experiment.config.runtime.workers, experiment.config.clients)
    if workers == 1:
        yield InProcess(experiment, strategy, folder, replied=replied)
        return
    with Pool(experiment, strategy, folder, workers=workers, replied=replied) as pool:
        yield pool


def headline(experiment: Experiment) -> str:
    """What runs, in a line."""
    c = experiment.config
    parts = [
        f"{c.clients} clients" if c.fraction == 1 else f"{rules.cohort_size(c)} of {c.clients} clients",
        str(c.data.get("_target_", experiment.dataset.name)).rpartition(".")[2],
        str(c.model.get("_target_", "model")).rpartition(".")[2],
        "W8A8 QAT" if experiment.quantized else "float32 model",
        f"{c.codec.name} packets",
    ]
    return ", ".join(parts)


def write_config(config: Config, path: Path) -> None:
    """The resolved config, and on top the command that made it."""
    from dataclasses import asdict

    from omegaconf import OmegaConf

    whole = asdict(config)
    overrides = whole.pop("overrides")
    whole.pop("overlay", None)
    path.write_text(
        f"# fedq run {one_line(shlex.join(overrides), limit=10_000)}\n{OmegaConf.to_yaml(OmegaConf.create(whole))}",
        encoding="utf-8",
    )
