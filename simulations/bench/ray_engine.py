"""Flower's Ray engine in a process of its own, asked for one round at a time. Knows `ray_peer`; not fedq."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_ROOT = Path(__file__).parents[2]
_LONGEST_WAIT = 120.0  # seconds for one round, or for the start


class RayEngine:
    """A context: Ray runs inside it and has gone after it, with its files.

    Its own process, since Flower keeps who this is in global variables, Ray prints on stdout, and the two
    contenders should not share an interpreter lock.
    """

    def __init__(self, *, nodes: int, num_cpus: int) -> None:
        self._settings: dict[str, Any] = {"nodes": nodes, "num_cpus": num_cpus}

    def __enter__(self) -> "RayEngine":
        # A short path: Ray's sockets lie under it, and a socket's path is limited to 107 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="r", dir="/tmp" if Path("/tmp").is_dir() else None)
        self._said = Path(self._folder.name) / "stderr"
        settings = json.dumps({**self._settings, "folder": self._folder.name})
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                # Not `-m`: what Ray's actors run must belong to a module that they can import by its name.
                [sys.executable, "-c", "from simulations.bench.ray_peer import main; main()", settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to pass on, by closing its input
            )
        try:
            self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # the peer's loop ends with its input, and takes Ray down
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=30)
        # Ray's daemons are of the peer's group and end with it, but for two agents if it was killed.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def echo_bytes(self, size: int, *, tasks: int) -> float:
        """Seconds of one round in which `tasks` clients are sent that many bytes and send them back."""
        return self._round({"bytes": size, "tasks": tasks})

    def echo_array(self, size: int, *, tasks: int) -> float:
        """The same with an `ArrayRecord` of one float32 array of that many values."""
        return self._round({"array": size, "tasks": tasks})

    def _round(self, order: dict[str, int]) -> float:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("ended") from None
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _LONGEST_WAIT)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise self._failure("ended" if ready else f"was silent for {_LONGEST_WAIT:.0f} s")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self, what: str) -> RuntimeError:
        last = self._said.read_text(encoding="utf-8", errors="replace")[-2000:]
        return RuntimeError(f"Flower's Ray engine {what}; the end of what it said:\n{last}")
