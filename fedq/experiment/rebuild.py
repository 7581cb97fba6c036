"""Rebuilds the experiment of a finished run with its final model. Knows run folders; trains nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedq.config import Config, rules
from fedq.config.config_file import read_config
from fedq.config.privacy_options import Privacy
from fedq.config.schema import Runtime
from fedq.experiment.build import build
from fedq.experiment.experiment import Experiment
from fedq.experiment.foreign import Allowed
from fedq.results import Result, read_result

CONFIG, MODEL = "config.yaml", "model.safetensors"


@dataclass(frozen=True)
class FinishedRun:
    """The config and the result in a run folder."""

    folder: Path
    config: Config
    result: Result

    def experiment(self, *, allow: Allowed | None = None) -> Experiment:
        """The experiment, built again, with the final arrays in its model. `ConfigError` if it cannot be built.

        `allow`: as in `build`; a command that gets a run's folder cannot know who wrote it. Nothing is trained, so
        privacy and runtime are off: no noise is calibrated and no ledger is opened.
        """
        experiment = build(replace(self.config, privacy=Privacy(), runtime=Runtime()), allow=allow)
        load_arrays(experiment.trainer.model, self.result.arrays, self.folder / MODEL)
        return experiment


def finished_run(folder: Path) -> FinishedRun:
    """Read a run folder. FileNotFoundError or ValueError, with a fix, if it is not one or cannot be rebuilt."""
    missing = [name for name in ("result.json", CONFIG, MODEL) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: no finished run, it has no {' and no '.join(missing)}; "
            "give a folder that fedq run made, such as outputs/DATE/TIME-NAME-ID"
        )
    config = read_config(folder / CONFIG)
    for group in ("model", "data"):
        target = str(getattr(config, group).get("_target_"))
        if target.startswith(rules.OBJECT):
            raise ValueError(
                f"{folder}: its {group} was a Python object ({target.removeprefix(rules.OBJECT)}), which a file cannot "
                f"restore; in Python use fedq.quant.export_onnx, or run with {group}._target_=my.module.Name"
            )
    return FinishedRun(folder, config, read_result(folder))


def load_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Load all arrays of the state, in place; ValueError if they belong to another model."""
    state = model.state_dict(keep_vars=True)
    given = {id(state[name]) for name in arrays if name in state}  # a tied weight is in the file once
    wrong = [name for name, tensor in state.items() if id(tensor) not in given]
    wrong += [n for n, a in arrays.items() if n not in state or tuple(state[n].shape) != a.shape]
    if wrong:
        raise ValueError(
            f"{path}: its arrays are not those of the model that config.yaml builds: {wrong[0]} differs; "
            "restore the model's code as it was at the run"
        )
    with torch.no_grad():
        for name, array in arrays.items():
            state[name].copy_(torch.from_numpy(array))
