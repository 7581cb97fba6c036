"""Run clients in this and in worker processes, which send partial sums. Does not know what workers train.

A worker is `python -m fedq.runtime.worker` and gets overrides and bytes: `fork` after a threaded torch operation
hangs, and `spawn` runs a user's script without a main guard again, in an endless loop.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fedq.experiment import Experiment, ServerExamples
from fedq.flower import wire
from fedq.runtime.frames import read_frame, write_frame
from fedq.runtime.local import in_process
from fedq.runtime.shares import Clock, Shares
from fedq.server import Broadcast, Roster, RoundAggregate
from fedq.server.link import Replied, nobody
from fedq.server.roster import LinkLostError
from fedq.server.round_aggregate import Traffic
from fedq.server.strategy import Strategy
from fedq.training import EVALUATION_BATCH


class WorkerDiedError(LinkLostError):
    """A worker process ended. Its clients' state is lost, so the run cannot continue."""


_PATIENCE = 2.0  # seconds for workers to end by themselves


class Pool:
    """`workers` processes: this one, and others that work beside it. Clients are divided by expected time.

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
        workers: int,
        replied: Replied = nobody,
    ) -> None:
        self._experiment, self._layout, self._replied = experiment, experiment.layout, replied
        self._clock = Clock()
        self._local = in_process(experiment, strategy, folder, replied=self._clock)
        sizes = {name: len(shard) for name, shard in experiment.shards.items()}
        self._shares = Shares(sizes, processes=workers, stay=experiment.clients_keep_state)
        self._ready = [0]  # processes that have built the experiment; this one is number 0
        setup = {
            "overrides": experiment.config.overrides,
            "overlay": str(experiment.config.overlay) if experiment.config.overlay else None,
            "path": sys.path,
            "folder": str(folder.absolute()),
        }
        # One OpenMP thread in each worker: the bits must not depend on the number of workers.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # The same fedq as in this process, wherever it was imported from.
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._workers: dict[int, subprocess.Popen[bytes]] = {}  # number, from 1 on -> process
        for number in range(1, workers):
            command = [sys.executable, "-m", "fedq.runtime.worker"]
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._workers[number] = worker
            assert worker.stdin is not None
            with suppress(BrokenPipeError):  # a worker that died at once is detected at its first use
                write_frame(worker.stdin, setup)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers: idle ones by the end of their input, busy ones by a signal after a short time."""
        for worker in self._workers.values():
            assert worker.stdin is not None
            with suppress(OSError):
                worker.stdin.close()
        end = time.monotonic() + _PATIENCE
        for worker in self._workers.values():
            try:
                worker.wait(timeout=max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()  # safe, since a ledger's spend is one transaction
                worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()

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
        shares = self._shares.divide(accepted, self._begun())
        self._expect(number for number, share in enumerate(shares) if share)
        for number in self._workers:
            if shares[number]:
                head = {"round": round, "task": task, "accepted": {name: accepted[name] for name in shares[number]}}
                self._send(number, {**head, **broadcast.head()}, broadcast.blobs())
        total = RoundAggregate(broadcast.kept(self._layout, round).layout)
        if shares[0]:
            own = {name: accepted[name] for name in shares[0]}
            self._clock.start()
            total.merge(self._local.gather(round, broadcast, own, task=task))
            self._shares.learn(self._clock.seconds(own))
            self._replied(len(shares[0]), len(accepted))
        for number in self._workers:
            if shares[number]:
                answer, blobs = self._receive(number)
                total.merge(RoundAggregate.from_bytes(blobs["total"], total.layout))
                self._shares.learn(answer["seconds"])
                self._replied(len(total.accepted) + len(total.rejected), len(accepted))
        return total

    def outputs(self, weights: np.ndarray, part: ServerExamples) -> np.ndarray:
        inputs = self._experiment.examples(part).inputs
        begun = self._begun()
        batches = -(-len(inputs) // EVALUATION_BATCH)
        ends = [EVALUATION_BATCH * (batches * (i + 1) // len(begun)) for i in range(len(begun))]
        ranges = dict(zip(begun, zip([0, *ends], ends, strict=False), strict=True))
        for number in begun[1:]:
            head = {"task": "outputs", "part": part, "range": ranges[number]}
            self._send(number, head, {"weights": weights.tobytes()})
        start, end = ranges[0]
        parts = [self._experiment.trainer.outputs(weights, inputs[start:end]).numpy()]
        for number in begun[1:]:
            answer, blobs = self._receive(number)
            parts.append(np.frombuffer(blobs["outputs"], np.float32).reshape(answer["shape"]))
        return np.concatenate(parts)

    def _begun(self) -> list[int]:
        """The processes that have built the experiment. Does not wait for the others."""
        for number, worker in self._workers.items():
            assert worker.stdout is not None
            if number not in self._ready and select.select([worker.stdout], [], [], 0)[0]:
                self._expect([number])
        return self._ready

    def _expect(self, numbers: Iterable[int]) -> None:
        """Wait until these processes have built the experiment."""
        for number in numbers:
            if number not in self._ready:
                self._receive(number)
                self._ready = sorted([*self._ready, number])

    def _send(self, number: int, head: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        stdin = self._workers[number].stdin
        assert stdin is not None
        try:
            write_frame(stdin, head, blobs)
        except BrokenPipeError:
            raise self._death(number) from None

    def _receive(self, number: int) -> tuple[dict[str, Any], dict[str, bytes]]:
        stdout = self._workers[number].stdout
        assert stdout is not None
        try:
            answer = read_frame(stdout)
        except EOFError:
            answer = None
        if answer is None:
            raise self._death(number)
        return answer

    def _death(self, number: int) -> WorkerDiedError:
        status = self._workers[number].wait()
        return WorkerDiedError(f"worker {number} ended with status {status}; its output is above")
