"""The parts that one config stands for. Knows the rooms below; not how a config becomes parts."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fedq import __version__
from fedq.client import Client, ClientState, Privacy
from fedq.codec import Layout
from fedq.config import Config
from fedq.data import Dataset
from fedq.experiment.ledgers import data_name
from fedq.quant import QuantReport
from fedq.randomness import generator, key64
from fedq.server import QuantizedFedAvg
from fedq.training import Trainer


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
            statistics=self.trainer.statistics,
            fraction=self.config.fraction,
            min_clients=c.min_clients,
            seed=self.config.seed,
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
        return Privacy(self.plan, home / "ledger.sqlite", random, data_name(self.config, self.dataset), run)
