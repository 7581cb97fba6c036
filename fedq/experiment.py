"""Composition root: a config in, built parts out, or every reason why not.

The one place that imports a user's callable. Knows the config and every room below; not Flower, processes or folders.
"""

import copy
import difflib
import importlib
import inspect
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from fedq import __version__
from fedq.client import Client, ClientState, Privacy
from fedq.codec import CODECS, Layout
from fedq.config import Config, ConfigError, Problem, problems, rules
from fedq.data import PARTITIONERS, Dataset, as_dataset
from fedq.privacy import refuse_cross_example_layers
from fedq.quant import ExportError, QuantReport, export_onnx, quantize
from fedq.randomness import generator, key64
from fedq.server import QuantizedFedAvg
from fedq.training import LOSSES, METRICS, Recipe, Trainer, layout_of, read_vector
from fedq.training.objectives import INTEGER_TARGETS

Factory = Callable[..., Any]


@dataclass
class Experiment:
    """What one config stands for. The same object serves the server and every client of a process."""

    config: Config
    dataset: Dataset
    shards: list[np.ndarray]  # indices of the training examples, one array a client
    trainer: Trainer
    initial: np.ndarray  # float32, shape (layout.size,)
    codec: Any
    quantized: QuantReport | None
    plan: Any  # DPPlan, or None when privacy is off
    shippable: bool  # False where the model or the data is an object of this process

    @property
    def layout(self) -> Layout:
        return self.trainer.layout

    @property
    def identities(self) -> list[str]:
        return [str(i) for i in range(self.config.clients)]

    @cached_property
    def accuracy_source(self) -> Literal["server_test", "clients", "none"]:
        """Who can say how good the model is: server_test, clients (on what they hold out), or none."""
        if self.dataset.test is not None:
            return "server_test"
        return "none" if self.plan is not None else "clients"

    def strategy(self) -> QuantizedFedAvg:
        c = self.config.strategy
        return QuantizedFedAvg(
            self.layout,
            self.codec,
            optimizer=lambda parameters: getattr(torch.optim, c.server)(parameters, lr=c.server_lr, **c.server_options),
            private=self.plan is not None,
            weighting=c.weighting,
            max_weight=c.max_weight,
            fraction=self.config.fraction,
            min_clients=c.min_clients,
            seed=self.config.seed,
            timeout=self.config.runtime.timeout,
            version=__version__,
        )

    def client(self, identity: str, *, folder: Path | None = None, run: str = "") -> Client:
        """The client of that name, whose ledger, evidence and log lie under `folder`."""
        indices = self.shards[int(identity)]
        held = generator(self.config.seed, "held out", identity).permutation(len(indices))[: self.held_out(identity)]
        return Client(
            identity,
            self.trainer,
            self.codec,
            shard=lambda: self.dataset.train[np.delete(indices, held)],
            held_out=lambda: self.dataset.train[np.sort(indices[held])],
            state=ClientState(folder),
            seed=self.config.seed,
            feedback=self.config.codec.feedback,
            privacy=self._privacy(identity, folder, run),
        )

    def held_out(self, identity: str) -> int:
        """How many of its examples a client keeps apart to evaluate on: none where the server has a test set."""
        if self.accuracy_source != "clients":
            return 0
        examples = len(self.shards[int(identity)])
        return min(examples - 1, max(1, round(self.config.train.holdout * examples)))

    def _privacy(self, identity: str, folder: Path | None, run: str) -> Privacy | None:
        if self.plan is None:
            return None
        from fedq.privacy import SecureRandom, SeededRandom

        options = self.config.privacy
        home = Path(options.ledger) / identity if options.ledger else folder
        if home is None:
            raise ValueError("a client under DP needs a folder for its ledger")
        seeded = options.noise == "seeded"
        random = SeededRandom(key64(self.config.seed, "noise", identity)) if seeded else SecureRandom()
        return Privacy(self.plan, home / "ledger.sqlite", random, self.dataset.name, run)


def build(config: Config, *, model: Any = None, data: Any = None) -> Experiment:
    """Every part of the experiment, ready to run, or `ConfigError` with all that is wrong with it.

    `model` (a factory or an `nn.Module`) and `data` (a function or what it may return) stand in for the config's
    `_target_` where the caller has objects; such an experiment runs in this process only.
    """
    found = list(problems(config))
    if config.runtime.workers > 1 and not (model is None and data is None):
        mend = "Use runtime.workers=1, or name the callable: model._target_=my.module.Net"
        found.append(
            Problem(
                "runtime.workers",
                config.runtime.workers,
                "other processes cannot get objects of this one",
                mend,
            )
        )
    dataset = _load_data(config, data, found)
    factory = _import(config.model.get("_target_"), "model", found) if model is None else model
    shards = _partition(config, dataset, found) if dataset is not None else None
    net = _make_model(config, factory, model, dataset, found) if dataset is not None and factory is not None else None
    report = (
        _quantize(config, net, dataset.input_shape, found)
        if dataset is not None and net is not None and config.quant.name != "off"
        else None
    )
    _check_training(config, dataset, net, found)
    if found or dataset is None or net is None or shards is None:
        raise ConfigError(found)
    layout = layout_of(net)
    trainer = Trainer(net, layout, _recipe(config))
    return Experiment(
        config,
        dataset,
        shards,
        trainer,
        read_vector(net, layout),
        _codec(config),
        report,
        _plan(config),
        shippable=model is None and data is None,
    )


def _recipe(config: Config) -> Recipe:
    t = config.train
    return Recipe(
        t.batch_size,
        t.optimizer,
        t.lr,
        config.rounds,
        t.epochs,
        t.steps,
        t.optimizer_options,
        t.schedule,
        t.clip_grad,
        t.loss,
        t.metric,
    )


def _codec(config: Config) -> Any:
    kind = CODECS[config.codec.name]
    accepted = inspect.signature(kind).parameters
    return kind(**{name: getattr(config.codec, name) for name in accepted})


def _plan(config: Config) -> Any:
    """The public plan of every client: noise is calibrated to the cap on participations, not to their mean."""
    if config.privacy.unit == "off":
        return None
    from fedq.privacy import DPPlan, calibrate

    p = config.privacy
    accountant = cast(Literal["prv", "rdp"], p.accountant)  # the rules have seen to it, and to nominal
    rate, steps, nominal = rules.sample_rate(config), rules.dp_steps(config), rules.nominal_examples(config)
    noise = p.noise_multiplier
    assert nominal is not None
    if noise is None:
        assert p.target_epsilon is not None
        noise = calibrate(
            target_epsilon=p.target_epsilon,
            delta=p.target_delta,
            sample_rate=rate,
            steps=steps * rules.participation_cap(config),
            accountant=accountant,
        )
    return DPPlan(
        noise_multiplier=noise,
        clip_norm=p.clip_norm,
        sample_rate=rate,
        steps=steps,
        nominal_examples=nominal,
        target_epsilon=math.inf if p.target_epsilon is None else p.target_epsilon,
        delta=p.target_delta,
        accountant=accountant,
    )


def _load_data(config: Config, data: Any, found: list[Problem]) -> Dataset | None:
    options = _arguments(config, "data", data)
    source = _import(config.data.get("_target_"), "data", found) if data is None else data
    if source is None:
        return None
    name = str(config.data.get("_target_")) if data is None else getattr(data, "__qualname__", "data")
    try:
        loaded = source(**_bound(source, options, "data", found)) if callable(source) else source
        dataset = as_dataset(loaded, name)
    except Exception as error:  # a user's own loader may raise anything; say what, before any work starts
        where = "data.path" if "path" in options else "data"
        found.append(Problem(where, options.get("path", name), _told(error), "Or choose another data=NAME"))
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


def _partition(config: Config, dataset: Dataset, found: list[Problem]) -> list[np.ndarray] | None:
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
        return kind(**options)(dataset.train.targets, dataset.groups, clients=config.clients, rng=rng)
    except ValueError as error:
        found.append(Problem("partition", config.partition.name, _told(error), "fedq run --help lists the partitions"))
        return None


def _make_model(config: Config, factory: Any, given: Any, dataset: Dataset, found: list[Problem]) -> nn.Module | None:
    options = _arguments(config, "model", given)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key64(config.seed, "initialisation"))
            if isinstance(factory, nn.Module):
                net = copy.deepcopy(factory)
            else:
                own = {"input_shape": dataset.input_shape, "num_outputs": dataset.num_outputs}
                accepted = inspect.signature(factory).parameters
                own = {k: v for k, v in own.items() if k in accepted}
                before = len(found)
                arguments = _bound(factory, options, "model", found)
                if len(found) > before:
                    return None
                net = factory(**{**own, **arguments})
        if not isinstance(net, nn.Module):
            raise TypeError(f"returned a {type(net).__name__}, not a torch.nn.Module")
    except Exception as error:  # a user's own model may raise anything
        found.append(
            Problem(
                "model",
                config.model.get("_target_", factory),
                _told(error),
                "Or choose another model=NAME",
            )
        )
        return None
    bad = [name for name, p in net.state_dict().items() if p.is_floating_point() and not torch.isfinite(p).all()]
    if bad:
        found.append(Problem("model", bad[0], "holds NaN or infinite values at the start", "Mend its initialisation"))
        return None
    if config.privacy.unit != "off":
        try:
            refuse_cross_example_layers(net)
        except ValueError as error:
            mend = "Use GroupNorm in the model, or privacy=off"
            found.append(Problem("model", config.model.get("_target_", "object"), _told(error), mend))
            return None
    return net if _answers(config, net, dataset, found) else None


def _answers(config: Config, net: nn.Module, dataset: Dataset, found: list[Problem]) -> bool:
    """One forward pass over two examples: the shape must fit before a round is started."""
    sample = torch.from_numpy(np.ascontiguousarray(dataset.train.inputs[:2]))
    try:
        net.eval()
        with torch.no_grad():
            shape = tuple(net(sample).shape)
        net.train()
    except Exception as error:
        rule = f"fails on inputs of shape {tuple(sample.shape)}: {_told(error)}"
        found.append(Problem("model", config.model.get("_target_", "object"), rule, "Choose a model for this data"))
        return False
    if shape != (len(sample), dataset.num_outputs):
        rule = f"gives outputs of shape {shape} where the data needs ({len(sample)}, {dataset.num_outputs})"
        found.append(
            Problem(
                "model",
                config.model.get("_target_", "object"),
                rule,
                "Take num_outputs as an argument of the model",
            )
        )
        return False
    return True


def _rehearse_export(net: nn.Module, input_shape: tuple[int, ...]) -> None:
    """A user's own model may hold what cannot be exported: better known before the training than after it."""
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(net, input_shape, Path(folder) / "model.onnx")


def _quantize(config: Config, net: nn.Module, input_shape: tuple[int, ...], found: list[Problem]) -> QuantReport | None:
    q = config.quant
    try:
        report = quantize(
            net,
            weights=q.weight_bits,
            activations=None if q.activations == "off" else q.activation_bits,
            ranges="fixed" if q.activations == "off" else q.activations,
            weight_range=q.weight_range,
            activation_range=q.activation_range,
            input_range=q.input_range,
            skip=tuple(q.skip),
        )
        if q.activations != "off" and not str(config.model.get("_target_")).startswith("fedq.models."):
            _rehearse_export(net, input_shape)
        return report
    except (ValueError, ExportError) as error:
        found.append(Problem("quant", q.name, _told(error), "Use quant=off to train the float model"))
        return None


def _check_training(config: Config, dataset: Dataset | None, net: nn.Module | None, found: list[Problem]) -> None:
    t, s = config.train, config.strategy
    for key, name, options, lr in (
        ("train.optimizer", t.optimizer, t.optimizer_options, t.lr),
        ("strategy.server", s.server, s.server_options, s.server_lr),
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
            kind([nn.Parameter(torch.zeros(1))], lr=lr, **options)  # type: ignore[call-arg]  # every one takes lr
        except Exception as error:
            found.append(Problem(key, f"{name}({options})", _told(error), f"See torch.optim.{name}"))
    if dataset is None:
        return
    integer = dataset.train.targets.dtype == np.int64
    for key, name, known in (("train.loss", t.loss, LOSSES), ("train.metric", t.metric, METRICS)):
        if name in known and (name in INTEGER_TARGETS) != integer:
            fit = "classes (integer targets)" if integer else "real-valued targets"
            use = ("cross_entropy" if integer else "mse") if key == "train.loss" else ("accuracy" if integer else "r2")
            found.append(Problem(key, name, f"the data has {fit}", f"Use {key}={use}"))


def _arguments(config: Config, group: str, given: Any) -> dict[str, Any]:
    """What the callable of an open group is called with; for an object of the caller, what the command line says."""
    options = {k: v for k, v in getattr(config, group).items() if k not in ("_target_", "nominal_examples")}
    if given is not None:
        options = {k: v for k, v in options.items() if rules.set_by_user(config, f"{group}.{k}")}
    return options


def _import(path: Any, group: str, found: list[Problem]) -> Factory | None:
    """The callable behind a dotted path; what cannot be imported becomes a problem."""
    if not isinstance(path, str) or "." not in path:
        return None  # the rules report it
    module, _, name = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except Exception as error:
        rule = f"cannot be imported: {_told(error)}"
        found.append(
            Problem(f"{group}._target_", path, rule, "It must be importable from the folder where fedq is started")
        )
        return None
    if not callable(target):
        found.append(Problem(f"{group}._target_", path, "is not callable", "Name a class or a function"))
        return None
    return target  # type: ignore[no-any-return]


def _bound(target: Any, options: Mapping[str, Any], group: str, found: list[Problem]) -> dict[str, Any]:
    """The options, if the callable takes them all; each one that it lacks becomes a problem with the nearest name."""
    accepted = inspect.signature(target).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        return dict(options)
    for name in set(options) - set(accepted):
        near = difflib.get_close_matches(name, accepted, n=1)
        mend = f"Did you mean {group}.{near[0]}?" if near else f"It takes: {', '.join(accepted) or 'nothing'}"
        found.append(
            Problem(
                f"{group}.{name}",
                options[name],
                f"{getattr(target, '__qualname__', target)} takes no such argument",
                mend,
            )
        )
    return {k: v for k, v in options.items() if k in accepted}


def _told(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    # The rooms name the value themselves ("data.path=X: no such file"), and so does a Problem: once is enough.
    return re.sub(r"^[a-z_.]+=\S+: ", "", text).rstrip(".")
