"""Write files completely or not at all, and private files for their owner only. Depends on bytes and paths."""

import os
import secrets
import stat
from pathlib import Path
from typing import Final, TextIO

PRIVATE_FILE: Final = 0o600  # for every umask: an umask only removes bits, and these are the minimum
_PRIVATE_FOLDER: Final = 0o700


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` by `content`. A reader, or a crash, sees the old file or the new one, never a part.

    `mode`: the mode of a new file, before the umask. An existing file keeps its mode.
    """
    target = Path(os.path.realpath(path))  # a symbolic link stays, and its target is replaced
    partial = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # without it, a power failure can leave the new name with empty content
        if target.exists():
            os.chmod(partial, stat.S_IMODE(target.stat().st_mode))
        os.replace(partial, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # puts the name on disk too
        finally:
            os.close(folder)
    except BaseException:  # Ctrl-C too: no partial file stays in the folder
        partial.unlink(missing_ok=True)
        raise


def append_to_private(path: Path) -> TextIO:
    """Open a text file for appending. A new file, and each new folder above it, is for its owner only.

    Characters that UTF-8 cannot encode are escaped: a message about an error must not fail itself.
    """
    make_private_folder(path.parent)
    opener = lambda name, flags: os.open(name, flags, PRIVATE_FILE)  # noqa: E731
    return open(path, "a", encoding="utf-8", errors="backslashreplace", opener=opener)


def make_private_folder(path: Path) -> None:
    """Make the folder and its missing parents, for their owner only; existing folders do not change."""
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(_PRIVATE_FOLDER, exist_ok=True)  # `parents=True` would give the parents the umask's modes
