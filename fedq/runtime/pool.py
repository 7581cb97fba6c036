"""Run clients and evaluations in this and in worker processes. Does not know how processes start or what clients do."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedq.experiment import Experiment, ServerExamples
from fedq.flower import wire
from fedq.runtime.local import in_process
from fedq.runtime.shares import Clock, Shares
from fedq.runtime.worker_processes import WorkerProcesses
from fedq.server import Broadcast, Roster, RoundAggregate
from fedq.server.link import Replied, nobody
from fedq.server.round_aggregate import Traffic
from fedq.server.strategy import Strategy
from fedq.training import EVALUATION_BATCH


class Pool:
    """This process, number 0, and others beside it, among which clients are divided by expected time.

    A client that keeps something between rounds stays with the process that holds it. Evaluations on the server's
    examples are divided too. This process works as well, since it would wait for the others otherwise, and it begins
    while they start.
    """

    def __init__(
        self,
        experiment: Experiment,
        strategy: Strategy,
        folder: Path,
        *,
        processes: WorkerProcesses,
        replied: Replied = nobody,
    ) -> None:
        self._experiment, self._layout, self._replied = experiment, experiment.layout, replied
        self._clock = Clock()
        self._local = in_process(experiment, strategy, folder, replied=self._clock)
        sizes = {name: len(shard) for name, shard in experiment.shards.items()}
        self._shares = Shares(sizes, processes=1 + len(processes.numbers), stay=experiment.clients_keep_state)
        self._processes = processes
        processes.use(folder)

    def close(self) -> None:
        """End the workers: no client trains or spends after this call."""
        self._processes.close()

    def meet(self) -> tuple[Roster, Traffic]:
        """Answer the hellos here: they need no data and no training."""
        return self._local.meet()

    def gather(
        self,
        round: int,
        broadcast: Broadcast,
        accepted: Mapping[str, int],
        *,
        task: str = wire.TRAIN,
    ) -> RoundAggregate:
        shares = self._shares.divide(accepted, [0, *self._processes.ready()])
        busy = [number for number in self._processes.numbers if shares[number]]
        self._processes.wait(busy)
        for number in busy:
            head = {"round": round, "task": task, "accepted": {name: accepted[name] for name in shares[number]}}
            self._processes.send(number, {**head, **broadcast.head()}, broadcast.blobs())
        total = RoundAggregate(broadcast.kept(self._layout, round).layout)
        if shares[0]:
            own = {name: accepted[name] for name in shares[0]}
            self._clock.start()
            total.merge(self._local.gather(round, broadcast, own, task=task))
            self._shares.learn(self._clock.seconds(own))
            self._replied(len(shares[0]), len(accepted))
        for number in busy:
            answer, blobs = self._processes.receive(number)
            total.merge(RoundAggregate.from_bytes(blobs["total"], total.layout))
            self._shares.learn(answer["seconds"])
            self._replied(len(total.accepted) + len(total.rejected), len(accepted))
        return total

    def outputs(self, weights: np.ndarray, part: ServerExamples) -> np.ndarray:
        inputs, ready = self._experiment.examples(part).inputs, self._processes.ready()
        # Whole batches, so that the bits do not depend on the number of processes; the first part is never empty.
        batches = -(-len(inputs) // EVALUATION_BATCH)
        ends = [EVALUATION_BATCH * -(-batches * i // (1 + len(ready))) for i in range(1, 2 + len(ready))]
        busy = [(number, *ends[i : i + 2]) for i, number in enumerate(ready) if ends[i] < ends[i + 1]]
        for number, start, end in busy:
            head = {"task": "outputs", "part": part, "range": [start, end]}
            self._processes.send(number, head, {"weights": weights.tobytes()})
        found = [self._experiment.trainer.outputs(weights, inputs[: ends[0]]).numpy()]
        for number, *_ in busy:
            answer, blobs = self._processes.receive(number)
            found.append(np.frombuffer(blobs["outputs"], np.float32).reshape(answer["shape"]))
        return np.concatenate(found)
