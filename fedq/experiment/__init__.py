"""Composition root: a config in, built parts out, or every reason why not. Not Flower, processes or folders."""

from fedq.experiment.build import build
from fedq.experiment.experiment import Experiment
from fedq.experiment.ledgers import client_folder
from fedq.experiment.owner import SERVER, Owner

__all__ = ["SERVER", "Experiment", "Owner", "build", "client_folder"]
