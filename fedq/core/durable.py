"""Write files whole or not at all, and private ones for their owner alone. Knows bytes, paths and modes alone."""

import os
import secrets
import stat
from pathlib import Path
from typing import Final, TextIO

PRIVATE_FILE: Final = 0o600  # whatever the umask: it takes bits away, and these are the least
_PRIVATE_FOLDER: Final = 0o700


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` by `content`; a reader or a crash sees the old file or the new one, never a part.

    `mode`: of a new file, less what the umask takes away. A file that is there keeps its own.
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing where it did
    partial = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # without it a power cut can leave the new name on empty content
        if target.exists():
            os.chmod(partial, stat.S_IMODE(target.stat().st_mode))
        os.replace(partial, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name is on disk too
        finally:
            os.close(folder)
    except BaseException:  # Ctrl-C too: nothing half-written is left in the folder
        partial.unlink(missing_ok=True)
        raise


def append_to_private(path: Path) -> TextIO:
    """The text file, open for appending; a new one, and each new folder above it, is for its owner alone.

    What UTF-8 cannot hold is spelled out: a note of what failed must not fail itself.
    """
    make_private_folder(path.parent)
    opener = lambda name, flags: os.open(name, flags, PRIVATE_FILE)  # noqa: E731
    return open(path, "a", encoding="utf-8", errors="backslashreplace", opener=opener)


def make_private_folder(path: Path) -> None:
    """Make the folder and those above it that are missing, for their owner alone; what is there stays as it is."""
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(_PRIVATE_FOLDER, exist_ok=True)  # `parents=True` would give those above the umask's modes
