"""Composition root: turns a config into built parts, or reports all problems. Does not know Flower or processes."""

from fedq.experiment.build import build
from fedq.experiment.experiment import Experiment, ServerExamples
from fedq.experiment.ledgers import client_folder
from fedq.experiment.site import SERVER, Site

__all__ = ["SERVER", "Experiment", "ServerExamples", "Site", "build", "client_folder"]
