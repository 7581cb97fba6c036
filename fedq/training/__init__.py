"""Fit and evaluate one model on one shard: the only place where quant and privacy meet. Not Flower or files."""

from fedq.training.arrays import layout_of, load_vector, read_vector, state_arrays
from fedq.training.augmentation import Views
from fedq.training.hardware import Hardware
from fedq.training.objectives import LOSSES, METRICS, Metric
from fedq.training.trainer import EVALUATION_BATCH, Evaluation, Fitted, PrivateFit, Recipe, Trainer, outputs_of

__all__ = [
    "EVALUATION_BATCH",
    "LOSSES",
    "METRICS",
    "Evaluation",
    "Fitted",
    "Hardware",
    "Metric",
    "PrivateFit",
    "Recipe",
    "Trainer",
    "Views",
    "layout_of",
    "load_vector",
    "outputs_of",
    "read_vector",
    "state_arrays",
]
