"""Which processes run, and for how long. Knows Linux alone; elsewhere nothing is promised."""

import ctypes
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def begun_at(pid: int) -> int | None:
    """When the process was started, in clock ticks since the machine's start; None if it does not run.

    With its id it names a process for good: Linux gives ids to other processes later.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def end_with_parent() -> None:
    """In a child: ask Linux to end this process when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
