"""fedq's own clients under Flower's own loop: `FlowerLoop(strategy).start(grid, arrays)`. Same bits as `run_rounds`."""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedq import codec as packets
from fedq.server.broadcast import Broadcast
from fedq.server.client_level import ClientLevelSum
from fedq.server.roster import Roster, grid_exchange, say_hello
from fedq.server.sampling import CyclicSampler
from fedq.server.strategy import Strategy


class FlowerLoop(FedAvg):
    """A Flower strategy that hands each half of a round to a `Strategy`. `fraction`: of the nodes that are there."""

    def __init__(self, strategy: Strategy, *, fraction: float = 1.0) -> None:
        super().__init__(fraction_train=fraction, min_train_nodes=1, min_available_nodes=1)
        # Passed to Flower, it would be a warning in each run.
        self.fraction_evaluate, self.min_evaluate_nodes = 0.0, 0
        self._strategy = strategy
        self._flower: tuple[Roster, CyclicSampler] | None = None
        self._master = np.empty(0, np.float32)
        self._asked: list[str] = []
        self._broadcast = Broadcast(b"")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
    ) -> Iterable[Message]:
        """Flower's seam: the requests of the round. `config` is not sent to fedq's own clients."""
        if self._flower is None:
            self._flower = self._meet(grid)
        roster, sampler = self._flower
        size = max(1, int(self.fraction_train * len(roster.nodes) + 1e-9))
        strategy = self._strategy
        self._master = strategy.layout.flatten(arrays_of(arrays))
        self._asked = sampler.cohort(server_round, size)
        self._broadcast = strategy.broadcast(self._master, server_round, self._asked)
        return strategy.messages(server_round, self._broadcast, strategy.last_accepted(self._asked), roster)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's seam: the new model, or None where too few replies were good."""
        if self._flower is None:
            raise RuntimeError("aggregate_train before configure_train")
        strategy = self._strategy
        total = strategy.collect(server_round, replies, self._asked, self._flower[0], self._broadcast)
        strategy.settle(total, self._broadcast)
        strategy.note(server_round, self._asked, [a.client for a in total.accepted])
        if len(total.accepted) < strategy.terms.min_clients:
            return None, None
        master = strategy.step(server_round, self._master, total)
        metrics = MetricRecord({"clients": len(total.accepted), "lost": len(total.rejected)})
        return ArrayRecord({n: torch.from_numpy(a) for n, a in strategy.layout.unflatten(master).items()}), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
    ) -> Iterable[Message]:
        """Flower's seam: fedq's own clients are not asked to evaluate here."""
        return []

    def _meet(self, grid: Any) -> tuple[Roster, CyclicSampler]:
        """Nodes that are not there yet are waited for, as many as a round needs; then all are greeted."""
        strategy, terms = self._strategy, self._strategy.terms
        client_level = isinstance(strategy.aggregation, ClientLevelSum)
        if isinstance(strategy.aggregation, ClientLevelSum) and strategy.aggregation.plan.sampling != "cyclic":
            raise ValueError("secret cohorts under Flower's own loop, which samples cyclically; use run_rounds")
        if client_level and terms.min_clients > 0:
            raise ValueError(
                f"client_level with min_clients={terms.min_clients}: a round that is skipped tells how many answered; "
                "use min_clients=0, so that each takes its noised step"
            )
        end = time.monotonic() + terms.timeout
        while len(list(grid.get_node_ids())) < max(1, terms.min_clients) and time.monotonic() < end:
            time.sleep(0.2)
        roster = say_hello(
            grid_exchange(grid),
            grid.get_node_ids(),
            version=terms.version,
            formats=packets.FORMATS,
            layout=strategy.layout.digest,
            timeout=terms.timeout,
            private=terms.private or client_level,
        )
        return roster, CyclicSampler(list(roster.nodes), seed=terms.seed)


def arrays_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    """Name -> array of a Flower record."""
    return {name: array.numpy() for name, array in record.items()}
