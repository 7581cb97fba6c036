"""Warnings of a client for its owner: on stderr at each start, and once in a run's log. They never leave the client."""

import sys
from contextlib import suppress

from fedq.client.state import LOG, ClientState


def warn_owner(state: ClientState, warning: str) -> None:
    """Print the warning on stderr, and add it to the run's log once; a full disk is ignored."""
    line = f"warning: {warning}"
    with suppress(OSError, ValueError):
        print(f"fedq: {line}", file=sys.stderr, flush=True)
    with suppress(OSError):
        if state.folder is None:
            return
        log = state.folder / LOG
        if not log.exists() or line not in log.read_text(encoding="utf-8", errors="replace").splitlines():
            state.log(line)
