"""Programs that are started for a while and are surely gone afterwards. Knows processes; not what they do."""

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

_GRACE = 4.0  # seconds to end by themselves after a SIGTERM
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MARK = "FEDQ_REHEARSAL"


class Processes:
    """Long-running programs, each with a log file; at the end none of them, nor of their children, is left."""

    def __init__(self, mark: str, environment: Mapping[str, str]) -> None:
        self._mark, self._environment = mark, {**environment, _MARK: mark}
        self._started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def __enter__(self) -> "Processes":
        _adopt_orphans(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _deaf():  # an impatient second Ctrl-C must not leave half of them
            try:
                self.end()
            finally:
                _adopt_orphans(False)

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        return {**self._environment, **extra}

    def start(self, command: Sequence[str], log: Path, extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own: a Ctrl-C at the terminal must not reach it before us."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment(extra),
                cwd=log.parent,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._started.append((process, log))
        return process

    def check(self) -> None:
        """RuntimeError, with the end of its log, if a program has ended that should go on."""
        for process, log in self._started:
            if process.poll() is not None:
                raise RuntimeError(
                    f"{shlex.join(map(str, process.args))}: ended with status {process.returncode}:\n{tail(log)}"  # type: ignore[arg-type]
                )

    def end(self) -> None:
        """SIGTERM to all, and after a moment SIGKILL to whoever is left, children included."""
        for process, _ in self._started:
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + _GRACE
        for process, _ in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.1, end - time.monotonic()))
        for process, _ in self._started:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # the whole session: children that outlived their parent
            process.wait()
        end = time.monotonic() + _GRACE
        while (left := self._descendants()) and time.monotonic() < end:
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        for _ in range(20):  # a child of a child comes to us only when its parent is gone
            for pid in _adopted():
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.05)
        self._started.clear()

    def _descendants(self) -> list[int]:
        """Whoever was started with our mark in its environment, whatever session it made for itself (Linux)."""
        found, wanted = [], f"{_MARK}={self._mark}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found


@contextmanager
def _deaf() -> Iterator[None]:
    """No signal that a person or a scheduler sends to end us; Python lets the main thread alone decide."""
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


def _end_with_parent() -> None:
    """In the child: be told to end when fedq is killed so that it can tell nobody (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _adopt_orphans(adopt: bool) -> None:
    """Be the parent of descendants whose own parent ends, so that they can be waited for (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _adopted() -> list[int]:
    """Flower's programs that ended after their parents: ours now, and zombies until somebody waits for them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            text = (entry / "stat").read_text()
            name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :]
            state, parent = rest.split()[:2]
            if state == "Z" and int(parent) == os.getpid() and name.startswith(("flwr-", "flower-")):
                found.append(int(entry.name))
    return found


def tail(log: Path, lines: int = 15) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    return ""
