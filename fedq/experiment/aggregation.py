"""The server's aggregation and its defences against lying clients, from the config. Knows no rounds or messages."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedq.codec.accumulator import LARGEST_WEIGHT
from fedq.data.split import trained_on
from fedq.server.aggregation import Aggregation, Averaging
from fedq.server.bounding import MULTIPLE_OF_NOISE, Bound, MedianBound, NormBound
from fedq.server.client_level import ClientLevelSum
from fedq.server.robust import AGGREGATES, Aggregate
from fedq.server.weighing import Weighing

if TYPE_CHECKING:
    from fedq.experiment.experiment import Experiment

_FINE = ("float32", "float16", "int8")  # codecs whose rounding hardly lengthens an update


def aggregation_of(experiment: "Experiment") -> Aggregation:
    """The aggregation: a weighted mean, a robust aggregate, or under client-level DP a noised sum."""
    options = experiment.config.strategy
    if experiment.client_plan is not None:
        return ClientLevelSum(experiment.codec, experiment.client_plan)
    aggregate = aggregate_of(experiment)
    all_count_the_same = experiment.plan is not None or aggregate is not None or options.weighting != "examples"
    weights = {} if all_count_the_same else weights_of_clients(experiment)
    return Averaging(
        experiment.codec,
        experiment.algorithm.uplink,
        weighing=Weighing(not all_count_the_same, options.max_weight or LARGEST_WEIGHT, weights),
        bound=bound_of(experiment),
        aggregate=aggregate,
    )


def bound_of(experiment: "Experiment") -> Callable[[], Bound] | None:
    """A factory of the bound on updates of one run; None: there is no bound, or client-level DP clips anyway."""
    longest = experiment.config.strategy.max_update_norm
    if longest == "off" or experiment.client_plan is not None:
        return None
    if longest != "auto":
        return lambda: NormBound(float(longest))
    recipe = experiment.trainer.recipe
    if not _public_length(experiment):
        return lambda: MedianBound(unit=recipe.lr_in)
    from fedq.privacy.longest import longest_update

    plan, scalars = experiment.plan, experiment.trainer.trained_scalars
    momentum = recipe.optimizer_options.get("momentum", 0.0)
    longest_by_lr = longest_update(plan, lr=1.0, scalars=scalars, momentum=momentum)
    return lambda: MedianBound(MULTIPLE_OF_NOISE, unit=lambda round: longest_by_lr * recipe.lr_in(round), most=1.0)


def _public_length(experiment: "Experiment") -> bool:
    """Whether public numbers alone bound an update: DP-SGD with an optimizer whose steps are sums of gradients."""
    recipe, codec = experiment.trainer.recipe, experiment.codec
    return (
        experiment.plan is not None
        and recipe.optimizer == "SGD"
        and set(recipe.optimizer_options) <= {"momentum"}
        and not experiment.trainer.statistics
        and codec.name in _FINE
        and not codec.error_feedback
    )


def weights_of_clients(experiment: "Experiment") -> dict[str, float]:
    """Client -> its number of training examples: from the config, else from the simulation's partition.

    Never a number that the client itself reports, because a larger weight gives it a larger share of the model.
    """
    stated: dict[str, float] = experiment.config.strategy.weights
    share = experiment.holdout
    return stated or {name: trained_on(len(shard), share) for name, shard in experiment.shards.items()}


def aggregate_of(experiment: "Experiment") -> Aggregate | None:
    """The robust aggregate that replaces the weighted mean; None: the mean."""
    options = experiment.config.strategy
    kind = AGGREGATES[options.aggregate]
    if kind is None:
        return None
    return kind(**{name: getattr(options, name) for name in inspect.signature(kind).parameters})
