"""The warm process: imports everything, then forks for each message. Knows sockets and forks; not what clients do.

    python -P -m fedq.app.warm.process FOLDER NAME PARENT

FOLDER is the descriptor of the private folder, PARENT the process with which this one ends. On stdin: a line of JSON
(import path, working folder) and the context of the run. This process opens no data, and runs no code of the bundle.
"""

import json
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from fedq.app.warm import frames, place
from fedq.core.lifetime import begun_at

IDLE_SECONDS: Final = 900.0  # without a message it ends; the next message starts another
_LOOK_SECONDS: Final = 0.5  # between two looks at the parent
NAME: Final = "fedq-warm"  # in lists of processes


def main(arguments: list[str]) -> None:
    """Serve until the parent ends, or nothing has come for `IDLE_SECONDS`."""
    folder, name, parent = int(arguments[0]), arguments[1], int(arguments[2])
    begun = begun_at(parent)
    os.set_inheritable(folder, False)
    _name_process()
    line, context = sys.stdin.buffer.readline(), sys.stdin.buffer.read()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that its socket is removed
    with place.listening(folder, name) as server:
        if server is None or begun is None:
            return
        _enter(json.loads(line))
        _warm_up(context)
        serve(server, alive=lambda: begun_at(parent) == begun, idle=IDLE_SECONDS)


def serve(server: socket.socket, *, alive: Callable[[], bool], idle: float) -> None:
    """Fork for each connection of this user, while `alive()`; ends after `idle` seconds without any."""
    forks: set[int] = set()
    last = time.monotonic()
    while alive():
        forks = {pid for pid in forks if _still_runs(pid)}
        last = time.monotonic() if forks else last
        if time.monotonic() - last > idle:
            return
        if not select.select([server], [], [], _LOOK_SECONDS)[0]:
            continue
        link, _ = server.accept()
        with link:
            try:
                place.check_peer(link)
            except OSError:
                continue
            pid = os.fork()
            if not pid:
                server.close()
                _fork(link)
        forks.add(pid)


def _fork(link: socket.socket) -> None:
    """Do the work of one message in this fork, and end it. Whatever happens, the parent's code does not go on here."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _work(link)
        status = 0
    except (EOFError, OSError):  # the other end is gone: it gave no order to begin, or nobody waits for the reply
        pass
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _work(link: socket.socket) -> None:
    """Receive a message, begin on the order to, and send the reply."""
    from fedq.app.direct import client
    from fedq.flower import private as flower

    _, streams, _, _ = socket.recv_fds(link, 1, 2)
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    given = json.loads(frames.receive(link))
    context, message = flower.deserialized_context(frames.receive(link)), flower.deserialized(frames.receive(link))
    _enter(given)
    flower.enter(*given["identity"])
    _reseed()
    link.sendall(frames.READY)
    if frames.exactly(link, 1) != frames.GO:
        return
    threading.Thread(target=_end_with, args=(link,), daemon=True).start()
    reply = client(message, context)
    sys.stdout.flush()  # the other end hangs up once it has the reply, and this fork ends
    sys.stderr.flush()
    frames.send(link, flower.serialized_context(context), flower.serialized(reply))


def _end_with(link: socket.socket) -> None:
    """End this fork when the other end is gone: its message is not wanted any more, as if its own process had ended."""
    with suppress(OSError):
        if link.recv(1) == b"":
            os._exit(1)


def _warm_up(context: bytes) -> None:
    """Import what a message needs, and compute what follows from the public configuration of the run."""
    from fedq.app import direct, node  # noqa: F401  direct: for the forks
    from fedq.flower import private as flower

    with suppress(Exception, SystemExit):  # each message reports the same failure, to whom it concerns
        node.prepare(flower.deserialized_context(context))


def _enter(surroundings: dict[str, object]) -> None:
    """Take the import path and the working folder of the process of a message."""
    path = surroundings["path"]
    assert isinstance(path, list)
    sys.path[:] = path
    with suppress(OSError):
        os.chdir(str(surroundings["folder"]))


def _reseed() -> None:
    """Fresh seeds for the global generators, which a fork shares with the forks before it.

    fedq's own generators have keys: of the run, or under DP from the operating system, for each fit.
    """
    import numpy as np

    random.seed()
    np.random.seed(list(os.urandom(64)))


def _still_runs(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG) == (0, 0)


def _name_process() -> None:
    with suppress(OSError):
        Path("/proc/self/comm").write_text(NAME, encoding="ascii")


if __name__ == "__main__":
    main(sys.argv[1:])
