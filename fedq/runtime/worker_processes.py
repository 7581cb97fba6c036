"""Worker processes: start them, exchange frames with them, end them. Does not know what they compute.

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

from fedq.config import Config
from fedq.runtime.frames import read_frame, write_frame
from fedq.server.roster import LinkLostError

_PATIENCE = 2.0  # seconds for workers to end by themselves


class WorkerDiedError(LinkLostError):
    """A worker process ended. Its clients' state is lost, so the run cannot continue."""


class WorkerProcesses:
    """`count` processes, numbered from 1, that build the experiment of a config beside this process."""

    def __init__(self, config: Config, count: int) -> None:
        setup = {
            "overrides": config.overrides,
            "overlay": str(config.overlay) if config.overlay else None,
            "path": sys.path,
        }
        # One OpenMP thread in each worker: the bits must not depend on the number of workers.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # The same fedq as in this process, wherever it was imported from.
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        command = [sys.executable, "-m", "fedq.runtime.worker"]
        self._processes = {
            number: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for number in range(1, count + 1)
        }
        self._ready: list[int] = []
        for number in self._processes:
            with suppress(WorkerDiedError):  # one that died at once is detected at its first use
                self.send(number, setup)

    @property
    def numbers(self) -> list[int]:
        return list(self._processes)

    def __enter__(self) -> "WorkerProcesses":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes: idle ones by the end of their input, busy ones by a signal after a short time."""
        for process in self._processes.values():
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
        end = time.monotonic() + _PATIENCE
        for process in self._processes.values():
            try:
                process.wait(timeout=max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # safe, since a ledger's spend is one transaction
                process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def use(self, folder: Path) -> None:
        """Name the run folder, which a worker needs before it answers."""
        for number in self._processes:
            with suppress(WorkerDiedError):  # it is detected at its first use
                self.send(number, {"folder": str(folder.absolute())})

    def ready(self) -> list[int]:
        """The processes that have built the experiment. Does not wait for the others."""
        for number, process in self._processes.items():
            assert process.stdout is not None
            if number not in self._ready and select.select([process.stdout], [], [], 0)[0]:
                self.wait([number])
        return self._ready

    def wait(self, numbers: Iterable[int]) -> None:
        """Wait until these processes have built the experiment."""
        for number in numbers:
            if number not in self._ready:
                self.receive(number)
                self._ready = sorted([*self._ready, number])

    def send(self, number: int, head: Mapping[str, Any], blobs: Mapping[str, bytes] | None = None) -> None:
        stdin = self._processes[number].stdin
        assert stdin is not None
        try:
            write_frame(stdin, head, blobs)
        except BrokenPipeError:
            raise self._death(number) from None

    def receive(self, number: int) -> tuple[dict[str, Any], dict[str, bytes]]:
        stdout = self._processes[number].stdout
        assert stdout is not None
        try:
            answer = read_frame(stdout)
        except EOFError:
            answer = None
        if answer is None:
            raise self._death(number)
        return answer

    def _death(self, number: int) -> WorkerDiedError:
        status = self._processes[number].wait()
        return WorkerDiedError(f"worker {number} ended with status {status}; its output is above")
