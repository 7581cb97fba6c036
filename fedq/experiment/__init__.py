"""Composition root: a config in, built parts out, or every reason why not. Not Flower, processes or folders."""

from fedq.experiment.build import build
from fedq.experiment.experiment import Experiment

__all__ = ["Experiment", "build"]
