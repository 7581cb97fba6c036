"""Tells whether a process still runs. Knows Linux's /proc alone."""

from pathlib import Path


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
