"""A SuperNode whose messages start no program: this process forks for each, with Flower's imports. Knows programs.

Flower imports its own code for each message, which takes longer than a warm process takes to answer. Here a fork
of this process takes the place of Flower's `flower-superexec` and `flwr-clientapp`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedq.core.lifetime import end_with_parent

_POLL_ENV: Final = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
_POLL_SECONDS: Final = "0.1"  # Flower's own 1 s would be most of a message
_HOST, _PORT, _ISOLATION = "--host", "--port", "--isolation"


def run_node(arguments: Sequence[str]) -> int:
    """Run `flower-supernode` with these arguments until it ends; its exit status. ValueError if they do not fit."""
    if sys.platform != "linux":
        raise ValueError(
            f"fedq client node forks, which is tested on Linux only, not on {sys.platform}; use flower-supernode"
        )
    address = _address(arguments)
    program = Path(sys.executable).with_name("flower-supernode")
    command = [str(program) if program.exists() else program.name, *arguments, _ISOLATION, "process"]
    os.environ.setdefault(_POLL_ENV, _POLL_SECONDS)
    import fedq.app  # noqa: F401  here, so that no fork has to
    from fedq.flower import private as flower

    with subprocess.Popen(command, preexec_fn=end_with_parent) as node:
        try:
            # Flower tries for ever to reach a SuperNode that has ended; this signal interrupts it.
            signal.signal(signal.SIGCHLD, lambda *_: _end_with(node))
            flower.serve_tasks(address, still_runs=lambda: node.poll() is None)
        except (KeyboardInterrupt, SystemExit):
            pass
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if node.poll() is None:
                node.terminate()
        return node.wait()


def _end_with(node: "subprocess.Popen[bytes]") -> None:
    if node.poll() is not None:
        raise SystemExit(0)


def _address(arguments: Sequence[str]) -> str:
    """Where the node's own processes reach it. ValueError, with the fix, unless it is on loopback."""
    given = {name: _value(arguments, name) for name in (_HOST, _PORT, _ISOLATION)}
    if given[_ISOLATION] is not None:
        raise ValueError(f"{_ISOLATION} {given[_ISOLATION]}: fedq client node sets it to process; leave it out")
    if given[_HOST] != "127.0.0.1":
        raise ValueError(f"{_HOST} {given[_HOST]}: must be 127.0.0.1, for this machine alone; add {_HOST} 127.0.0.1")
    return f"127.0.0.1:{given[_PORT] or 9094}"


def _value(arguments: Sequence[str], name: str) -> str | None:
    for number, word in enumerate(arguments):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and number + 1 < len(arguments):
            return arguments[number + 1]
    return None
