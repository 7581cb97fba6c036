"""Write a file whole or not at all. Knows bytes and paths; not what they mean."""

import os
import secrets
import stat
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`; a reader or a crash sees the old file or the new one, never a part."""
    target = Path(os.path.realpath(path))  # a link keeps pointing where it did
    partial = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
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
