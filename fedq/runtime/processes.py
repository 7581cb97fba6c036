"""Start programs for a while and make sure that they end. Does not know what they do."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from fedq.core.lifetime import end_with_parent

_GRACE = 4.0  # seconds between SIGTERM and SIGKILL
_PR_SET_CHILD_SUBREAPER = 36
_MARK = "FEDQ_REHEARSAL"


class Processes:
    """Long-running programs, each with a log file. On exit all of them and their children are ended."""

    def __init__(self, mark: str, environment: Mapping[str, str]) -> None:
        self._mark, self._environment = mark, {**environment, _MARK: mark}
        self._started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def __enter__(self) -> "Processes":
        _adopt_orphans(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _ignore_signals():  # a second Ctrl-C must not interrupt the shutdown
            try:
                self.end()
            finally:
                _adopt_orphans(False)

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        return {**self._environment, **extra}

    def start(self, command: Sequence[str], log: Path, extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a program in its own session: a Ctrl-C at the terminal must not reach it before this process."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment(extra),
                cwd=log.parent,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._started.append((process, log))
        return process

    def check(self) -> None:
        """RuntimeError, with the end of the log, if a program has ended that should still run."""
        for process, log in self._started:
            if process.poll() is not None:
                raise RuntimeError(
                    f"{shlex.join(map(str, process.args))}: ended with status {process.returncode}:\n{tail(log)}"  # type: ignore[arg-type]
                )

    def end(self) -> None:
        """Send SIGTERM to all programs, and after a short time SIGKILL to those that still run, and their children."""
        for process, _ in self._started:
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + _GRACE
        for process, _ in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.1, end - time.monotonic()))
        for process, _ in self._started:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(
                    process.pid, signal.SIGKILL
                )  # the whole session, including children that outlived their parent
            process.wait()
        end = time.monotonic() + _GRACE
        while (left := self._descendants()) and time.monotonic() < end:
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        for _ in range(20):  # a grandchild is adopted only after its parent has ended
            for pid in _adopted():
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.05)
        self._started.clear()

    def _descendants(self) -> list[int]:
        """All processes with our mark in their environment, in any session (Linux)."""
        found, wanted = [], f"{_MARK}={self._mark}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found


@contextmanager
def _ignore_signals() -> Iterator[None]:
    """Ignore the signals by which a person or a scheduler ends this process; works in Python's main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _adopt_orphans(adopt: bool) -> None:
    """Become the parent of descendants whose own parent ends, so that they can be waited for (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _adopted() -> list[int]:
    """Programs that ended after their parents; they are zombies until this process waits for them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            text = (entry / "stat").read_text()
            name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :]
            state, parent = rest.split()[:2]
            if state == "Z" and int(parent) == os.getpid() and name.startswith(("flwr-", "flower-", "fedq-")):
                found.append(int(entry.name))
    return found


def tail(log: Path, lines: int = 15) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    return ""
