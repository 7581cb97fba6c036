"""The data of an experiment and its deal over the clients; what is wrong with them becomes problems."""

import inspect
from typing import Any

import numpy as np

from fedq.config import Config, Problem
from fedq.data import PARTITIONERS, Dataset, as_dataset
from fedq.experiment.binding import arguments, bound, imported, problem
from fedq.randomness import generator


def load_data(config: Config, data: Any, found: list[Problem]) -> Dataset | None:
    options = arguments(config, "data", data)
    source = imported(config.data.get("_target_"), "data", found) if data is None else data
    if source is None:
        return None
    name = str(config.data.get("_target_")) if data is None else getattr(data, "__qualname__", "data")
    try:
        loaded = source(**bound(source, options, "data", found)) if callable(source) else source
        dataset = as_dataset(loaded, name)
    except (Exception, SystemExit) as error:  # a user's own loader may raise anything; say what, before work starts
        where = "data.path" if "path" in options else "data"
        mend = "Or choose another data=NAME"
        found.append(problem(error, key=where, value=options.get("path", name), mend=mend))
        return None
    if config.privacy.unit != "off" and dataset.fitted_on_private_data:
        rule = "a statistic of the training examples is baked into the inputs and DP-SGD does not cover it"
        found.append(
            Problem("data.standardize", True, rule, "Use data.standardize=false and scale by public constants")
        )
    if config.strategy.keep == "best" and dataset.validation is None:
        rule = "the best model is chosen on a validation set, and the data has none"
        found.append(Problem("strategy.keep", "best", rule, "Use strategy.keep=last"))
    return dataset


def deal(config: Config, dataset: Dataset, found: list[Problem]) -> list[np.ndarray] | None:
    if config.partition.name not in PARTITIONERS or config.clients < 1:
        return None
    if config.clients > len(dataset.train):
        rule = f"more clients than the {len(dataset.train)} training examples"
        found.append(Problem("clients", config.clients, rule, f"Use clients={len(dataset.train)} or fewer"))
        return None
    kind = PARTITIONERS[config.partition.name]
    options = {name: getattr(config.partition, name) for name in inspect.signature(kind).parameters}
    try:
        rng = generator(config.seed, "partition")
        shards = kind(**options)(dataset.train.targets, dataset.groups, clients=config.clients, rng=rng)
        largest = max(len(shard) for shard in shards)
        if config.strategy.weighting == "examples" and largest > config.strategy.max_weight:
            rule = f"a client holds {largest} examples, and its replies would all be refused for their weight"
            mend = f"Use strategy.max_weight={largest} or more"
            found.append(Problem("strategy.max_weight", config.strategy.max_weight, rule, mend))
        return shards
    except ValueError as error:
        mend = "fedq run --help lists the partitions"
        found.append(problem(error, key="partition", value=config.partition.name, mend=mend))
        return None
