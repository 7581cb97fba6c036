"""An experiment: all parts of one config. Depends on the packages below; does not know how parts are built."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fedq import __version__
from fedq.algorithms import Algorithm, FedAvg
from fedq.client import Client, ClientState, Privacy
from fedq.codec import Codec, Layout
from fedq.config import Config, public
from fedq.config.pruning import pruning_rounds
from fedq.core.compiler import without_compiler
from fedq.core.randomness import key64
from fedq.data import Dataset, Examples
from fedq.experiment.aggregation import aggregation_of
from fedq.experiment.ledgers import Account, ledger_file
from fedq.privacy import ClientLevelPlan
from fedq.quant import QuantReport
from fedq.server import Downlink, Pruning, Strategy, Terms
from fedq.server.optimizer import ServerOptimizer
from fedq.training import Trainer

ServerExamples = Literal["test", "validation"]  # the parts of the data that the server evaluates on


@dataclass
class Experiment:
    """All parts of one config. The server and every client of a process share the same object."""

    config: Config
    dataset: Dataset
    shards: dict[str, np.ndarray]  # client -> indices of its training examples; on an owner's machine, only that client
    trainer: Trainer
    initial: np.ndarray  # float32, shape (layout.size,)
    codec: Codec
    downlink: Downlink
    quantized: QuantReport | None
    plans: dict[str, Any]  # client -> DPPlan; {} when privacy is off
    data_name: str  # name of the examples in ledgers
    client_plan: ClientLevelPlan | None = None  # client-level DP at the server
    algorithm: Algorithm = field(default_factory=FedAvg)

    @cached_property
    def plan(self) -> Any:
        """The plan of the client that may spend most: an upper bound for all; None when privacy is off."""
        return min(self.plans.values(), key=lambda plan: plan.noise_multiplier, default=None)

    @property
    def layout(self) -> Layout:
        return self.trainer.layout

    @property
    def identities(self) -> list[str]:
        return public.identities(self.config)

    @cached_property
    def accuracy_source(self) -> Literal["server_test", "clients", "noisy_counts", "none"]:
        """Where scores come from: the server's test set, the clients' held-out examples, noisy counts, or nowhere."""
        if self.config.evaluate == "off":
            return "none"
        if self.config.evaluate == "dp":
            return "noisy_counts"
        if self.dataset.test is not None:
            return "server_test"
        return "none" if self.claims_privacy else "clients"

    def examples(self, part: ServerExamples) -> Examples:
        """The server's examples of that part. ValueError if the data has none."""
        found = self.dataset.test if part == "test" else self.dataset.validation
        if found is None:
            raise ValueError(f"the data has no {part} examples")
        return found

    @property
    def clients_keep_state(self) -> bool:
        """Whether a client must be served by one process: what it keeps between rounds is in memory there.

        It is a residual, the weights that changes refer to, an algorithm's vectors, a ledger with its random source.
        """
        return (
            self.codec.error_feedback
            or self.downlink.kind == "delta"
            or bool(self.algorithm.client_state(self.layout.size))
            or bool(self.plans)
        )

    @property
    def claims_privacy(self) -> bool:
        """Whether example-level or client-level DP is on."""
        return self.plan is not None or self.client_plan is not None

    def counts_after(self, round: int) -> bool:
        """Whether clients are asked for noisy counts after this round: only after the last one."""
        return self.accuracy_source == "noisy_counts" and round == self.config.rounds

    @cached_property
    def pruning(self) -> Pruning | None:
        """The pruning schedule and its weights; None: no pruning."""
        sparsity = self.config.quant.sparsity
        if sparsity is None or self.quantized is None:
            return None
        return Pruning(weights_of(self.quantized), sparsity, *pruning_rounds(self.config))

    def strategy(self) -> Strategy:
        """The server's strategy, in its state before the first round."""
        statistics = self.layout.slices(lambda segment: segment.name in self.trainer.statistics)
        terms = Terms(
            seed=self.config.seed,
            # Under client-level DP every round takes its noised step, whatever the number of replies.
            min_clients=self.config.strategy.min_clients if self.client_plan is None else 0,
            clients=len(self.identities),
            private=self.plan is not None,
            holdout=self.holdout,
            timeout=self.config.runtime.timeout,
            version=__version__,
        )
        return Strategy(
            self.layout,
            self.codec,
            algorithm=self.algorithm,
            downlink=self.downlink,
            optimizer=ServerOptimizer(self._server_optimizer, statistics),
            aggregation=aggregation_of(self),
            pruning=self.pruning,
            terms=terms,
        )

    def _server_optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        c = self.config.strategy
        with without_compiler():
            return getattr(torch.optim, c.server_optimizer)(parameters, lr=c.server_lr, **c.server_options)  # type: ignore[no-any-return]

    def client(
        self,
        identity: str,
        *,
        folder: Path | None = None,
        run: str = "",
        account: Account | None = None,
        durable: bool = False,
    ) -> Client:
        """The client of that name; `folder` holds its evidence and log of this run.

        `account`: its ledger, if that outlives the run; `durable`: each message may start a new process. ValueError
        under DP if there is no folder for its ledger.
        """
        indices = self.shards[identity]
        return Client(
            identity,
            self.trainer,
            self.codec,
            shard=lambda: self.dataset.train[indices],
            state=ClientState(folder, durable=durable),
            seed=self.config.seed,
            keeps_weights=self.downlink.kind == "delta",
            privacy=self._privacy(identity, folder, run, account),
            algorithm=self.algorithm,
        )

    @property
    def holdout(self) -> float:
        """Share of a client's examples that is held out for evaluation; 0 where the server has a test set."""
        return self.config.train.holdout if self.accuracy_source in ("clients", "noisy_counts") else 0.0

    def _privacy(self, identity: str, folder: Path | None, run: str, account: Account | None) -> Privacy | None:
        if not self.plans:
            return None
        from fedq.privacy import SecureRandom, SeededRandom

        if account is None:
            if folder is None:
                raise ValueError("a client under DP needs a folder for its ledger")
            account = Account(ledger_file(self.config, folder, identity))
        seeded = self.config.privacy.noise == "seeded"
        random = SeededRandom(key64(self.config.seed, "noise", identity)) if seeded else SecureRandom()
        return Privacy(
            self.plans[identity],
            account.ledger,
            random,
            self.data_name,
            run,
            account.bundle,
            account.tip,
            self.holdout,
        )


def weights_of(report: QuantReport) -> tuple[str, ...]:
    """Names of the arrays with integer weights, which pruning may set to zero."""
    return report.weights
