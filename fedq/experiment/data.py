"""Loads the data of an experiment and partitions them over the clients. Reports what is wrong as problems."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np

from fedq.config import Config, Problem, public
from fedq.core.randomness import generator
from fedq.data import PARTITIONERS, Dataset, as_dataset, csv, is_shard, read_shard
from fedq.experiment.binding import arguments, bound, check_paths, imported, problem
from fedq.experiment.foreign import Allowed
from fedq.experiment.site import Site


def load_data(
    config: Config, data: Any, found: list[Problem], *, owner: Site | None = None, allow: Allowed | None = None
) -> Dataset | None:
    """The data of the config's loader; on a client's machine, from the path in its node config.

    None, with problems added to `found`, if they cannot be loaded.
    """
    options = arguments(config, "data", data)
    own = owner.data if owner is not None else None
    if own is not None and is_shard(own):
        source: Any = read_shard
        options = {"path": str(own)}
    else:
        source = imported(config.data.get("_target_"), "data", found, allow) if data is None else data
        theirs = owner is not None and owner.identity is not None  # a client, whose config came over the network
        if theirs and not _own_path(options, own, found):
            return None
        if theirs and not check_paths(config, "data", source, found, allowed=("path",)):
            return None
        if own is not None and source is not None:
            _of_one_client(source, options, found)
    if source is None:
        return None
    name = str(config.data.get("_target_")) if data is None else getattr(data, "__qualname__", "data")
    try:
        loaded = source(**bound(source, options, "data", found)) if callable(source) else source
        if own is not None and config.privacy.unit != "off" and not isinstance(loaded, Dataset):
            raise ValueError(
                "returned plain arrays, so one client's rows would decide and reveal the number of classes; "
                "under DP return a fedq.data.Dataset with num_outputs"
            )
        dataset = as_dataset(loaded, name)
    except (Exception, SystemExit) as error:  # a user's loader may raise anything; report it before work starts
        where = "data.path" if "path" in options else "data"
        fix = "Or choose another data=NAME"
        found.append(problem(error, key=where, value=options.get("path", name), fix=fix))
        return None
    if config.privacy.unit != "off" and dataset.fitted_on_private_data:
        rule = "the inputs contain a statistic of the training examples, which DP-SGD does not cover"
        found.append(
            Problem("data.standardize", True, rule, "Use data.standardize=false and scale by public constants")
        )
    serves = owner is None or owner.identity is None  # a client does not choose the model that is kept
    if serves and config.strategy.keep == "best" and dataset.validation is None:
        rule = "the best model is chosen on a validation set, and the data has none"
        found.append(Problem("strategy.keep", "best", rule, "Use strategy.keep=last"))
    return dataset


def _own_path(options: dict[str, Any], own: Path | None, found: list[Problem]) -> bool:
    """Replace the config's path by the owner's: the network never decides which file a client opens."""
    if own is not None:
        options["path"] = str(own)
        return True
    if options.get("path") is None:
        return True
    rule = "a path that came over the network is not opened, and this node's config names none"
    fix = "Start the SuperNode with --node-config '... data-path=\"/path/to/own/data\"'"
    found.append(Problem("data.path", options["path"], rule, fix))
    return False


def _of_one_client(source: Any, options: dict[str, Any], found: list[Problem]) -> None:
    """Set the options that a loader cannot derive from one client's rows, or add a problem where they are missing."""
    # All rows are used for training. A split would depend on their number: one more row would move many other rows
    # between the parts, but privacy=example protects one.
    accepted = inspect.signature(source).parameters
    options.update({name: 0.0 for name in ("validation_fraction", "test_fraction") if name in accepted})
    if source is not csv:
        return
    if options.get("task", "classification") == "classification" and not options.get("classes"):
        rule = "each client would number the labels of its own file, and theirs may differ"
        found.append(Problem("data.classes", None, rule, "Name them all, in one order: data.classes=[no,yes]"))
    if options.get("standardize", True):
        rule = "each client would scale by a mean of its own"
        found.append(Problem("data.standardize", True, rule, "Use data.standardize=false and scaled columns"))


def partition(
    config: Config, dataset: Dataset, found: list[Problem], *, owner: Site | None = None
) -> dict[str, np.ndarray] | None:
    """Client -> indices of its training examples; a client with data of its own has all of them.

    None, with a problem added to `found`, if the partition is not possible.
    """
    if owner is not None and (owner.identity is None or owner.data is not None):
        return {} if owner.identity is None else {owner.identity: np.arange(len(dataset.train))}
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
        return dict(zip(public.identities(config), shards, strict=True))
    except ValueError as error:
        fix = "fedq run --help lists the partitions"
        found.append(problem(error, key="partition", value=config.partition.name, fix=fix))
        return None
