"""What a client warns its owner of: on its own terminal at each start, and once a run in its log. Never leaves."""

import sys
from contextlib import suppress

from fedq.client.state import LOG, ClientState


def warn_owner(state: ClientState, warning: str) -> None:
    """Say it on stderr, and in the run's log unless it is there; a full disk stops neither."""
    line = f"warning: {warning}"
    with suppress(OSError, ValueError):
        print(f"fedq: {line}", file=sys.stderr, flush=True)
    with suppress(OSError):
        if state.folder is None:
            return
        log = state.folder / LOG
        if not log.exists() or line not in log.read_text(encoding="utf-8", errors="replace").splitlines():
            state.log(line)
