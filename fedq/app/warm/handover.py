"""Hands a message to a warm process, and starts one for the next message. Imports no torch, and no code of a bundle.

Until the warm process gets the order to begin, every failure means that this process does the work itself. Afterwards
the message may have been paid for, so it is never worked on again: a failure is reported as lost.
"""

import datetime
import hashlib
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from flwr.app import Context, Message

from fedq import __version__
from fedq.app.bundle import bundle_digest, running_app, running_bundle
from fedq.app.warm import frames, place
from fedq.core.durable import append_to_private
from fedq.core.lifetime import begun_at
from fedq.flower import private as flower

LOG: Final = "log.txt"  # in the folder of the sockets: which process answered, and why none did
PROGRAM: Final = "flwr-clientapp"  # Flower's process of one message
READY_SECONDS: Final = 30.0  # a process that has just been started is still importing
MOST_BYTES: Final = 2**28  # of a request: a reply of float32 may be four times as long, and Flower's limit is 2^31
MOST_PROCESSES: Final = 4  # of one state-dir, each of another run: a server could start runs to fill the memory
NONE_THERE: Final = (FileNotFoundError, ConnectionRefusedError)  # none was started, or it was killed


class LostError(RuntimeError):
    """A warm process began to work on the message, and did not answer."""


def handed_over(message: Message, context: Context) -> Message | None:
    """The reply of a warm process; None if this process has to do the work. LostError if the reply is lost."""
    if not _allowed(context):
        return None
    try:
        request = (flower.serialized_context(context), flower.serialized(message))
        if sum(map(len, request)) > MOST_BYTES:
            return None
        with place.opened(_state(context)) as folder:
            link = place.dial(folder, _key(context))
    except NONE_THERE:
        return None
    except Exception as error:
        _note(context, f"no warm process: {error}")
        return None
    with link:
        try:
            pid = place.check_peer(link)
            _prepare(link, request)
            link.sendall(frames.GO)
        except Exception as error:  # it got no order to begin
            _note(context, f"the warm process is not ready: {error}")
            return None
        return _reply(link, message, context, pid)


def start_if_none(context: Context) -> None:
    """Start a warm process for the next message, unless there is one, or the owner's machine has enough of them."""
    if not _allowed(context):
        return
    try:
        with place.opened(_state(context)) as folder:
            name = _key(context)
            with suppress(*NONE_THERE):
                place.dial(folder, name).close()
                return
            place.remove_dead(folder)
            if place.count(folder) < MOST_PROCESSES:
                _start(folder, name, flower.serialized_context(context))
    except Exception as error:
        _note(context, f"no warm process: {error}")


def _state(context: Context) -> Path:
    return Path(str(context.node_config["state-dir"])).expanduser()


def _allowed(context: Context) -> bool:
    """Whether a warm process may be used: Linux, Flower's process of one message, and not switched off."""
    node = context.node_config
    named = isinstance(state := node.get("state-dir"), str) and Path(state).expanduser().is_absolute()
    usual = sys.platform == "linux" and Path(sys.argv[0]).name == PROGRAM and "ray" not in sys.modules
    return usual and named and node.get("warm", True) is True


def _key(context: Context) -> str:
    """Names the only warm process that may answer: of this run, bundle, node config, fedq and SuperNode."""
    app, parent = running_app(), os.getppid()
    # The forks read a bundle's code again. A checkout may hold much else than its configs.
    files = running_bundle() or (None if app is None else app / "conf")
    parts = [
        __version__,
        __file__,
        sys.executable,
        str(parent),
        str(begun_at(parent)),
        str(context.run_id),
        str(context.node_id),
        json.dumps([dict(context.node_config), dict(context.run_config)], sort_keys=True),
        f"{app} {'' if files is None else bundle_digest(files)}",
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _start(folder: int, name: str, context: bytes) -> None:
    """Start a warm process, which ends with the parent of this process."""
    command = [sys.executable, "-P", "-m", "fedq.app.warm.process", str(folder), name, str(os.getppid())]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C at the SuperNode's terminal ends the node, and this process with it
        pass_fds=(folder,),
    )
    _STARTED.append(process)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(json.dumps(_surroundings()).encode() + b"\n" + context)


_STARTED: list[subprocess.Popen[bytes]] = []  # they outlive this process, which does not wait for them


def _surroundings() -> dict[str, object]:
    return {"path": sys.path, "folder": str(Path.cwd())}


def _prepare(link: socket.socket, request: tuple[bytes, bytes]) -> None:
    """Send the message. EOFError or OSError if the other end does not have it whole in time."""
    link.settimeout(READY_SECONDS)
    own = json.dumps({**_surroundings(), "identity": flower.identity()}).encode()
    sys.stdout.flush()
    sys.stderr.flush()
    socket.send_fds(link, [frames.READY], [1, 2])  # what the work prints belongs to this process' log
    frames.send(link, own, *request)
    if frames.exactly(link, 1) != frames.READY:
        raise ValueError("it gave another answer than that it is ready")
    link.settimeout(None)  # the work has its own deadline, on the other side


def _reply(link: socket.socket, message: Message, context: Context, pid: int) -> Message:
    """The reply, and the state of the context as the work left it."""
    try:
        after, reply = (frames.receive(link) for _ in range(2))
        answer = flower.deserialized(reply)
        context.state = flower.deserialized_context(after).state
    except Exception as error:
        raise LostError(f"the fork of the warm process {pid} ended while it worked: {error}") from error
    _note(context, f"{message.metadata.message_type} answered by warm process {pid}")
    return answer


def _note(context: Context, text: str) -> None:
    """A line for the owner: Flower discards what this process prints."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with suppress(OSError), append_to_private(_state(context) / place.FOLDER / LOG) as log:
        log.write(f"{now} run {context.run_id}: {text}\n")
