"""Checks that optimizers, loss and metric exist, take their options and fit the data."""

import difflib

import numpy as np
import torch
from torch import nn

from fedq.config import Config, Problem
from fedq.core.compiler import without_compiler
from fedq.data import Dataset
from fedq.experiment.binding import error_text
from fedq.training import LOSSES, METRICS
from fedq.training.objectives import INTEGER_TARGETS


def check_training(config: Config, dataset: Dataset | None, found: list[Problem]) -> None:
    """Add a problem for each optimizer, loss or metric that cannot be used."""
    t, s = config.train, config.strategy
    for key, name, options, lr in (
        ("train.optimizer", t.optimizer, t.optimizer_options, t.lr),
        ("strategy.server_optimizer", s.server_optimizer, s.server_options, s.server_lr),
    ):
        kind = getattr(torch.optim, name, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
            names = [n for n in dir(torch.optim) if n[:1].isupper()]
            near = difflib.get_close_matches(name, names, n=1)
            found.append(
                Problem(
                    key,
                    name,
                    "no such optimizer in torch.optim",
                    f"Did you mean {near[0]}?" if near else "Use SGD",
                )
            )
            continue
        try:
            parameter = nn.Parameter(torch.zeros(2))
            parameter.grad = torch.ones(2)
            with without_compiler():
                optimizer = kind([parameter], lr=lr, **options)  # type: ignore[call-arg]  # every one takes lr
                optimizer.step()  # fails for LBFGS (needs a closure) and SparseAdam (needs sparse gradients)
        except Exception as error:
            found.append(Problem(key, f"{name}({options})", error_text(error), f"See torch.optim.{name}, or use SGD"))
    if dataset is None:
        return
    integer = dataset.train.targets.dtype == np.int64
    for key, name, known in (("train.loss", t.loss, LOSSES), ("train.metric", t.metric, METRICS)):
        if name in known and (name in INTEGER_TARGETS) != integer:
            fit = "classes (integer targets)" if integer else "real-valued targets"
            use = ("cross_entropy" if integer else "mse") if key == "train.loss" else ("accuracy" if integer else "r2")
            found.append(Problem(key, name, f"the data has {fit}", f"Use {key}={use}"))
