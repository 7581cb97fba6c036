"""Where the sockets of a client's warm processes are, and who may use them. Knows paths and users; no messages.

The folder is `warm/` in the client's state-dir, with mode 0700. A socket is reached through the open folder
(`/proc/self/fd/N/NAME`): a socket's path has at most 107 bytes, and a state-dir may be longer.
"""

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fedq.core.durable import PRIVATE_FILE, make_private_folder

FOLDER: Final = "warm"
_LOCK: Final = ".lock"
_SOCKET: Final = ".sock"


class UnsafePlaceError(OSError):
    """The folder, or the process at the other end, does not belong to this user alone."""


@contextmanager
def opened(state: Path) -> Iterator[int]:
    """A descriptor of the folder, made if it is missing. UnsafePlaceError if another user owns it or can open it."""
    make_private_folder(state / FOLDER)
    folder = os.open(state / FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(folder)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            mode, who = stat.S_IMODE(found.st_mode), found.st_uid
            rule = f"belongs to user {who} and has mode {mode:o}, must be user {os.geteuid()} and mode 700"
            raise UnsafePlaceError(f"{state / FOLDER}: {rule}; remove it, or use warm=false in the node config")
        yield folder
    finally:
        os.close(folder)


def dial(folder: int, name: str) -> socket.socket:
    """A connection to the warm process of that name. OSError if there is none; UnsafePlaceError if it is not ours."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(_address(folder, name))
        check_peer(link)
    except BaseException:
        link.close()
        raise
    return link


@contextmanager
def listening(folder: int, name: str) -> Iterator[socket.socket | None]:
    """The socket of that name, to accept connections; None if another process has it. A dead one's is replaced."""
    lock = _locked(folder, name)
    if lock is None:
        yield None
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            with suppress(FileNotFoundError):
                os.unlink(name + _SOCKET, dir_fd=folder)
            server.bind(_address(folder, name))
            os.chmod(name + _SOCKET, PRIVATE_FILE, dir_fd=folder)
            server.listen()
            yield server
    finally:
        _remove(folder, name)
        os.close(lock)


def remove_dead(folder: int) -> None:
    """Remove sockets of processes that were killed, which could not remove them."""
    for entry in os.listdir(folder):
        if entry.endswith(_LOCK) and (lock := _locked(folder, name := entry.removesuffix(_LOCK))) is not None:
            _remove(folder, name)
            os.close(lock)


def count(folder: int) -> int:
    """The number of warm processes, each with its socket."""
    return sum(entry.endswith(_SOCKET) for entry in os.listdir(folder))


def check_peer(link: socket.socket) -> int:
    """The process id at the other end, from the kernel. UnsafePlaceError if another user runs it."""
    size = struct.calcsize("3i")
    pid, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if user != os.geteuid():
        raise UnsafePlaceError(f"process {pid} of user {user} is at the other end, not of user {os.geteuid()}")
    return int(pid)


def _address(folder: int, name: str) -> str:
    return f"/proc/self/fd/{folder}/{name}{_SOCKET}"


def _locked(folder: int, name: str) -> int | None:
    """A descriptor that holds the lock of that name until it is closed; None if another process holds it."""
    import fcntl  # not on Windows, where a simulation imports this module too

    while True:
        lock = os.open(name + _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE, dir_fd=folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have removed the file between the two calls: then this lock protects nothing.
            if os.path.sameopenfile(lock, again := os.open(name + _LOCK, os.O_RDWR, dir_fd=folder)):
                os.close(again)
                return lock
            os.close(again)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(lock)
            return None
        os.close(lock)


def _remove(folder: int, name: str) -> None:
    for ending in (_SOCKET, _LOCK):
        with suppress(FileNotFoundError):
            os.unlink(name + ending, dir_fd=folder)
