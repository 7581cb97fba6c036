"""Composition root: a config in, built parts out, or every reason why not. Not Flower, processes or folders."""

from fedq.experiment.build import build
from fedq.experiment.experiment import Experiment
from fedq.experiment.ledgers import client_folder
from fedq.experiment.site import SERVER, Site

__all__ = ["SERVER", "Experiment", "Site", "build", "client_folder"]
