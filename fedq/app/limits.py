"""Limits of one message on a client's machine, in time and memory, and the number of a run's rounds.
Knows the process and a file; not policies' rules, messages or training.

A limit that cannot be enforced is an error, because the owner relies on it.
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

GRACE_SECONDS: Final = 10.0  # code that does not stop at the deadline is ended, with its process, after this time
_MEGABYTE: Final = 10**6
_STATM: Final = Path("/proc/self/statm")
ASKED: Final = "asked.txt"


class DeadlineExceeded(TimeoutError):  # noqa: N818  as in gRPC and asyncio
    """A message took longer than the owner allows."""


class LimitError(RuntimeError):
    """A limit that the owner set cannot be enforced here."""


class _Alarm(BaseException):
    """Raised by the signal; `except Exception` in a user's code does not catch it."""


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """DeadlineExceeded if the body takes longer than `seconds` (None: no limit). LimitError outside the main thread.

    Python raises it between two of its own instructions, and in blocking system calls. For code that never returns to
    Python, or catches everything, the whole process ends `GRACE_SECONDS` later. That is safe for the ledger, because a
    spend is one transaction.
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
            # Inside the outer try, so that an alarm at the last moment is caught.
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Alarm:
        raise DeadlineExceeded(f"took longer than the {seconds:g} s that max_seconds allows") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_limit(megabytes: int | None) -> Iterator[None]:
    """MemoryError (in torch RuntimeError) if the body takes more memory beyond the present use; None: no limit.

    RLIMIT_DATA counts private writable memory. RLIMIT_AS would also count address space that libraries reserve and
    never use. Raises LimitError where the present use is not known.
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
    """Bytes in use that RLIMIT_DATA counts, from the Linux kernel."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[5])
    except (OSError, ValueError, IndexError) as error:
        raise LimitError(f"max_memory: {_STATM} does not say what is in use: {error}") from error
    return pages * os.sysconf("SC_PAGE_SIZE")


def count_request(folder: Path, round: int, *, most: int | None) -> None:
    """Record a request for training in the run's folder; Declined("policy") if there are already `most` of them.

    A message that is delivered twice counts twice. The record is on disk before training begins.
    """
    path = folder / ASKED
    had = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
    if most is not None and had >= most:
        raise Declined("policy", f"round {round}: the run already had {had} rounds, of at most {most}")
    with append_to_private(path) as file:
        file.write(f"{round}\n")
        file.flush()
        os.fsync(file.fileno())
