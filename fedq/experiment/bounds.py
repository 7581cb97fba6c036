"""From the options of a strategy to its rules against clients that lie. Knows the config; not rounds or messages."""

import inspect
from collections.abc import Callable
from statistics import fmean
from typing import TYPE_CHECKING

from fedq.codec.accumulator import LARGEST_WEIGHT
from fedq.config import public
from fedq.server.bounding import Bound, MedianBound, NormBound
from fedq.server.robust import AGGREGATES, Aggregate

if TYPE_CHECKING:
    from fedq.experiment.experiment import Experiment

TIMES_NOMINAL = 10  # a client may weigh so many times what it is taken to hold
_FINE = ("float32", "float16", "int8")  # codecs whose rounding makes an update hardly longer


def bound_of(experiment: "Experiment") -> Callable[[], Bound] | None:
    """What makes the bound on updates of one run; None: there is none, or clients as a whole are clipped anyhow."""
    longest = experiment.config.strategy.max_update_norm
    if longest == "off" or experiment.client_plan is not None:
        return None
    if longest != "auto":
        return lambda: NormBound(lambda round: float(longest))
    if not _public_length(experiment):
        return MedianBound
    from fedq.privacy.longest import longest_update

    plan, recipe = experiment.plan, experiment.trainer.recipe
    momentum, scalars = recipe.optimizer_options.get("momentum", 0.0), experiment.trainer.trained_scalars
    return lambda: NormBound(
        lambda round: longest_update(plan, lr=recipe.lr_in(round), scalars=scalars, momentum=momentum)
    )


def _public_length(experiment: "Experiment") -> bool:
    """Whether public numbers alone bound an update: DP-SGD, by an optimizer whose steps are sums of gradients."""
    recipe, codec = experiment.trainer.recipe, experiment.codec
    return (
        experiment.plan is not None
        and recipe.optimizer == "SGD"
        and set(recipe.optimizer_options) <= {"momentum"}
        and not experiment.trainer.statistics
        and codec.name in _FINE
        and not codec.feedback
    )


def largest_weight(experiment: "Experiment") -> float:
    """What a client's word is believed up to: the option, or a multiple of what each is taken to hold."""
    config = experiment.config
    if config.strategy.max_weight is not None:
        return config.strategy.max_weight
    nominal = public.nominal_examples(config)
    if nominal is not None:
        return TIMES_NOMINAL * nominal
    shards = experiment.shards.values()  # none on the server of a deployment, where no client's word counts
    return TIMES_NOMINAL * fmean(map(len, shards)) if shards else LARGEST_WEIGHT


def aggregate_of(experiment: "Experiment") -> Aggregate | None:
    """The aggregate that takes the place of the weighted mean; None: the mean."""
    options = experiment.config.strategy
    kind = AGGREGATES[options.aggregate]
    if kind is None:
        return None
    return kind(**{name: getattr(options, name) for name in inspect.signature(kind).parameters})
