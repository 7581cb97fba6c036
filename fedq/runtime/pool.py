"""Run clients in worker processes that share the broadcast and send partial sums. Does not know what workers train.

A worker is `python -m fedq.runtime.worker` and gets overrides and bytes: `fork` after a threaded torch operation
hangs, and `spawn` runs a user's script without a main guard again, in an endless loop.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fedq.experiment import Experiment
from fedq.flower import wire
from fedq.runtime.frames import read_frame, write_frame
from fedq.runtime.local import in_process
from fedq.server import Broadcast, Roster, RoundAggregate
from fedq.server.link import Replied, nobody
from fedq.server.roster import LinkLostError
from fedq.server.round_aggregate import Traffic
from fedq.server.strategy import Strategy


class WorkerDiedError(LinkLostError):
    """A worker process ended. Its clients' state is lost, so the run cannot continue."""


_PATIENCE = 2.0  # seconds for workers to end by themselves


class Pool:
    """`workers` processes. A client is served by the same process in every round, which holds its residual."""

    def __init__(
        self,
        experiment: Experiment,
        strategy: Strategy,
        folder: Path,
        *,
        workers: int,
        replied: Replied = nobody,
    ) -> None:
        self._layout, self._local = experiment.layout, in_process(experiment, strategy, folder)
        self._replied = replied
        home = {name: i % workers for i, name in enumerate(experiment.identities)}
        self._home = home
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
        self._workers: list[subprocess.Popen[bytes]] = []
        for _ in range(workers):
            command = [sys.executable, "-m", "fedq.runtime.worker"]
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._workers.append(worker)
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
        for worker in self._workers:
            assert worker.stdin is not None
            with suppress(OSError):
                worker.stdin.close()
        end = time.monotonic() + _PATIENCE
        for worker in self._workers:
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
        busy = []
        for number, worker in enumerate(self._workers):
            share = {name: last for name, last in accepted.items() if self._home[name] == number}
            if share:
                assert worker.stdin is not None
                try:
                    head = {"round": round, "task": task, "accepted": share}
                    write_frame(worker.stdin, {**head, **broadcast.head()}, broadcast.blobs())
                except BrokenPipeError:
                    raise self._death(number) from None
                busy.append(number)
        total = RoundAggregate(broadcast.kept(self._layout, round).layout)
        for number in busy:
            stdout = self._workers[number].stdout
            assert stdout is not None
            try:
                answer = read_frame(stdout)
            except EOFError:
                answer = None
            if answer is None:
                raise self._death(number)
            total.merge(RoundAggregate.from_bytes(answer[1]["total"], total.layout))
            self._replied(len(total.accepted) + len(total.rejected), len(accepted))
        return total

    def _death(self, number: int) -> WorkerDiedError:
        status = self._workers[number].wait()
        return WorkerDiedError(f"worker {number} ended with status {status}; its output is above")
