"""Builds an experiment from a config, or raises `ConfigError` with all problems, before any work starts."""

import inspect
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np

from fedq.codec import CODECS, Codec, with_error_feedback
from fedq.config import Config, ConfigError, Problem, problems, public, rules
from fedq.config.client_level import protects_examples
from fedq.config.robustness import unstated_weights
from fedq.data import Dataset
from fedq.experiment.algorithm import algorithm_of
from fedq.experiment.binding import check_paths, imported, problem, rule_and_fix
from fedq.experiment.client_level import check_all_averaged, client_level_plan
from fedq.experiment.data import load_data, partition
from fedq.experiment.experiment import Experiment, weights_of
from fedq.experiment.foreign import Allowed, check_files
from fedq.experiment.hardware import make_hardware
from fedq.experiment.ledgers import check_ledgers, data_name, ledger_name
from fedq.experiment.model import make_model, make_quantized
from fedq.experiment.optimizers import check_training
from fedq.experiment.plans import plan_of
from fedq.experiment.site import Site
from fedq.privacy import ClientLevelPlan
from fedq.quant import QuantReport, enable_per_example_gradients
from fedq.server import Downlink
from fedq.server.broadcast import downlink_for
from fedq.server.pruning import parts_of
from fedq.training import Recipe, Trainer, Views, layout_of, read_vector


def build(
    config: Config, *, model: Any = None, data: Any = None, owner: Site | None = None, allow: Allowed | None = None
) -> Experiment:
    """The experiment with all its parts, ready to run. Raises `ConfigError` with all problems.

    `owner`: the party whose machine this is, in a deployment; only that owner's data are opened.

    `model` (a factory or an `nn.Module`) and `data` (a function, or a value that it may return) replace the config's
    `_target_` where the caller has objects. Such an experiment runs in this process only.

    `allow`: for a config of another party, the modules beside fedq that its model and data may come from.
    """
    if allow is not None:
        check_files(config)
    config = _named_objects(config, model=model, data=data)
    found = list(problems(config))
    if owner is not None and owner.identity is None:  # a deployment's server, whichever way the run was started
        found += [problem for problem in unstated_weights(config) if problem not in found]
    if not (model is None and data is None):
        away: list[tuple[str, Any]] = [("runtime.workers", config.runtime.workers)] * (
            config.runtime.workers not in (rules.AUTO, 1)
        )
        away += [("runtime", config.runtime.name)] * (config.runtime.name != "local")
        fix = "Use runtime.workers=1 runtime=local, or name the callable: model._target_=my.module.Net"
        found += [Problem(key, value, "other processes cannot receive objects of this one", fix) for key, value in away]
    dataset = load_data(config, data, found, owner=owner, allow=allow)
    factory = imported(config.model.get("_target_"), "model", found, allow) if model is None else model
    if owner is not None and owner.identity is not None and not check_paths(config, "model", factory, found):
        factory = None
    shards = partition(config, dataset, found, owner=owner) if dataset is not None else None
    net = make_model(config, factory, model, dataset, found) if dataset is not None and factory is not None else None
    report = (
        make_quantized(config, net, dataset, found, exports=owner is None or owner.identity is None)
        if dataset is not None and net is not None and config.quant.name != "off"
        else None
    )
    if net is not None and protects_examples(config):
        enable_per_example_gradients(net)
    if net is not None and report is not None:
        _check_pruning(config, net, report, found)
    check_training(config, dataset, found)
    if dataset is not None:
        _check_augmentations(config, dataset.input_shape, found)
    hardware = make_hardware(config, found, owner=owner)
    name = _data_name(config, owner, dataset, shards)
    if owner is None:
        check_ledgers(config, name, found)
    codec = _codec(config, "codec", found)
    downlink = _downlink(config, codec, found)
    algorithm = algorithm_of(config, found)
    plans = _plans(config, owner, found) if not found else {}
    client_plan = _checked_client_plan(config, found) if not found else None
    if net is not None:
        check_all_averaged(config, layout_of(net), found)
    if (
        found
        or dataset is None
        or net is None
        or shards is None
        or name is None
        or codec is None
        or downlink is None
        or algorithm is None
    ):
        raise ConfigError(found)
    layout = layout_of(net)
    trainer = Trainer(net, layout, _recipe(config), hardware, input_shape=dataset.input_shape)
    return Experiment(
        config,
        dataset,
        shards,
        trainer,
        read_vector(net, layout),
        codec,
        downlink,
        report,
        plans,
        name,
        client_plan,
        algorithm,
    )


def _named_objects(config: Config, **given: Any) -> Config:
    """The config with the caller's objects in place of the choices that they replace.

    The arguments and the public size of the replaced choice are removed, since they belong to other data. The name of
    the object makes the config differ from one without it.
    """
    changed: dict[str, Any] = {}
    for group, given_object in given.items():
        if given_object is not None:
            name = getattr(given_object, "__qualname__", type(given_object).__qualname__)
            own = {k: v for k, v in getattr(config, group).items() if rules.set_by_user(config, f"{group}.{k}")}
            changed[group] = {**own, "_target_": f"{rules.OBJECT}{name}"}
    return replace(config, **changed)


def _data_name(
    config: Config, owner: Site | None, dataset: Dataset | None, shards: dict[str, np.ndarray] | None
) -> str | None:
    """The name of the examples in ledgers; None if there are none, for a reason that is already reported."""
    if dataset is None or shards is None:
        return None
    if owner is not None and owner.identity is not None:
        return ledger_name(config, owner)
    return data_name(config, dataset, shards)


def _recipe(config: Config) -> Recipe:
    t, p = config.train, config.privacy
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
        t.autocast,
        Views(p.augmentations, tuple(p.augment)) if p.augmentations > 1 else None,
    )


def _check_augmentations(config: Config, input_shape: tuple[int, ...], found: list[Problem]) -> None:
    if config.privacy.augmentations > 1 and len(input_shape) != 3:
        rule = f"augmentation is for images (channels, height, width), and an input is {input_shape}"
        found.append(
            Problem("privacy.augmentations", config.privacy.augmentations, rule, "Use privacy.augmentations=1")
        )


def _check_pruning(config: Config, net: Any, report: QuantReport, found: list[Problem]) -> None:
    if config.quant.sparsity is not None and not parts_of(layout_of(net), weights_of(report)):
        rule = "no quantized layer of this model has 256 weights: there is nothing to prune"
        found.append(Problem("quant.sparsity", config.quant.sparsity, rule, "Use quant.sparsity=null"))


def _codec(config: Config, group: Literal["codec", "downlink"], found: list[Problem]) -> Codec | None:
    """The codec of one direction; None if its options do not go together."""
    options = getattr(config, group)
    if options.name not in CODECS:
        return None  # the rules report it
    kind = CODECS[options.name]
    accepted = inspect.signature(kind).parameters
    try:
        return kind(**{name: getattr(options, name) for name in accepted})
    except ValueError as error:
        name = str(error).partition("=")[0].removeprefix("codec.")
        key, (rule, fix) = f"{group}.{name}", rule_and_fix(error)
        if all(problem.key != key for problem in found):  # the rules report what is out of bounds
            found.append(Problem(key, getattr(options, name), rule, fix.replace("Try ", f"Try {key}=")))
        return None


def _downlink(config: Config, codec: Codec | None, found: list[Problem]) -> Downlink | None:
    """The downlink: by its own options, or with the codec of the update where that is precise enough for weights."""
    kind = cast(Literal["weights", "delta"], config.downlink.kind)
    if config.downlink.name is None:
        if kind == "delta":
            rule = "changes need a codec of their own, with downlink.name"
            found.append(Problem("downlink.kind", kind, rule, f"Add downlink.name={config.codec.name}"))
            return None
        return None if codec is None else downlink_for(codec)
    own = _codec(config, "downlink", found)
    if own is None:
        return None
    try:
        return Downlink(with_error_feedback(own, kind == "delta"), kind)
    except ValueError as error:
        found.append(Problem("downlink.name", config.downlink.name, *rule_and_fix(error)))
        return None


def _plans(config: Config, owner: Site | None, found: list[Problem]) -> dict[str, Any]:
    """Client -> its DP plan; {} without DP. On an owner's machine, with that owner's budget."""
    budgets = config.privacy.budgets
    plans: dict[str, Any] = {}
    try:
        for identity in public.identities(config):
            own: tuple[float | None, float | None] = (budgets.get(identity), None)
            if owner is not None and owner.identity is not None:
                own = (owner.budget, owner.delta)
            plans[identity] = plan_of(config, *own)
    except (ValueError, ArithmeticError) as error:
        fix = "Try privacy.target_epsilon=8 or privacy.noise_multiplier=1"
        found.append(problem(error, key="privacy.target_epsilon", value=config.privacy.target_epsilon, fix=fix))
    return {name: plan for name, plan in plans.items() if plan is not None}


def _checked_client_plan(config: Config, found: list[Problem]) -> ClientLevelPlan | None:
    try:
        return client_level_plan(config)
    except (ValueError, ArithmeticError) as error:
        key, fix = "privacy.client.noise_multiplier", "Try privacy.client.target_epsilon=8, and no noise multiplier"
        found.append(problem(error, key=key, value=config.privacy.client.noise_multiplier, fix=fix))
        return None
