"""What one message may take of a client's machine: seconds, memory, and how many rounds a run has had of it.
Knows the process and a file; not policies' rules, messages or training.

A limit that cannot be enforced is an error, since its owner relies on it.
"""

import faulthandler
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from fedq.core.durable import append_to_private
from fedq.privacy import Declined

GRACE_SECONDS: Final = 10.0  # after which code that does not stop at the deadline ends with its process
_MEGABYTE: Final = 10**6
_STATM: Final = Path("/proc/self/statm")
ASKED: Final = "asked.txt"


class DeadlineExceeded(TimeoutError):  # noqa: N818  as in gRPC and asyncio
    """A message took longer than the owner allows."""


class LimitError(RuntimeError):
    """A limit that the owner set cannot be enforced here."""


class _Alarm(BaseException):
    """Raised by the signal; no `except Exception` of a user's code stops it."""


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """DeadlineExceeded where the body takes longer (None: as long as it takes).

    Python raises between two of its own instructions, and in system calls that wait. Code that never comes back to
    Python, or catches everything, ends with the whole process `GRACE_SECONDS` later: a ledger's spend is one
    transaction, so it is there or it is not.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise LimitError(f"max_seconds={seconds:g}: a deadline needs the main thread of the client's process")

    def alarm(_signal: int, _frame: FrameType | None) -> None:
        raise _Alarm

    before = signal.signal(signal.SIGALRM, alarm)
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # in here, so that an alarm at the last moment is caught as well
    except _Alarm:
        raise DeadlineExceeded(f"took longer than the {seconds:g} s that max_seconds allows") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_limit(megabytes: int | None) -> Iterator[None]:
    """MemoryError (of torch: RuntimeError) where the body takes so much more than the process holds now; None: none.

    RLIMIT_DATA counts what is private and writable. RLIMIT_AS would count address space that libraries reserve and
    never use.
    """
    if megabytes is None:
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    least = [_data_in_use() + megabytes * _MEGABYTE, *(limit for limit in (before, hard) if limit >= 0)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(least), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def _data_in_use() -> int:
    """Bytes that RLIMIT_DATA counts, as the kernel of Linux says."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[5])
    except (OSError, ValueError, IndexError) as error:
        raise LimitError(f"max_memory: {_STATM} does not say what is in use: {error}") from error
    return pages * os.sysconf("SC_PAGE_SIZE")


def count_request(folder: Path, round: int, *, most: int | None) -> None:
    """Note in the run's folder that it asks for training; Declined("policy") where it has had `most` rounds already.

    A message that is delivered again counts again. What is noted is on disk before the training begins.
    """
    path = folder / ASKED
    had = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
    if most is not None and had >= most:
        raise Declined("policy", f"round {round}: the run has had {had} rounds of at most {most}")
    with append_to_private(path) as file:
        file.write(f"{round}\n")
        file.flush()
        os.fsync(file.fileno())
