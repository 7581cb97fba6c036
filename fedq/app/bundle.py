"""The app directory of this process: configs and code, as Flower unpacked them. Knows paths alone."""

import hashlib
import os
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

UNPACKED = "apps"  # the folder of $FLWR_HOME in which Flower unpacks bundles
COMPONENTS = {"serverapp": "fedq.app:server", "clientapp": "fedq.app:client"}


def is_app(folder: Path) -> bool:
    """Whether the folder's pyproject.toml names fedq's apps as its components."""
    try:
        with (folder / "pyproject.toml").open("rb") as file:
            return bool(tomllib.load(file)["tool"]["flwr"]["app"]["components"] == COMPONENTS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def running_app() -> Path | None:
    """The directory of the running app, which Flower puts first on `sys.path`; None if there is none."""
    for entry in sys.path:
        if entry and is_app(Path(entry)):
            return Path(entry)
    return None


def running_bundle() -> Path | None:
    """The running app, if Flower unpacked it from a bundle; None for a checkout."""
    app = running_app()
    return app if app is not None and app.parent.name == UNPACKED else None


def bundle_digest(bundle: Path) -> str:
    """SHA-256 (hex) over names and contents of all files of a `.fab` file, or of the folder where it is unpacked.

    It leaves out `.info`, which Flower adds to only one of both, and `__pycache__`. A client deletes
    `__pycache__` before it computes the digest, because compiled modules would run instead of the reviewed source.
    """
    digest = hashlib.sha256(b"fedq bundle 1")
    for name, content in sorted(_files(bundle)):
        if not {"__pycache__", ".info"} & set(name.split("/")):
            for part in (name.encode(), content):
                digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _files(bundle: Path) -> Iterator[tuple[str, bytes]]:
    if bundle.is_dir():
        for path in bundle.rglob("*"):
            if path.is_symlink() or path.is_file():
                content = path.read_bytes() if path.is_file() else os.readlink(path).encode()
                yield path.relative_to(bundle).as_posix(), content
        return
    with zipfile.ZipFile(bundle) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                yield entry.filename, archive.read(entry)


def overlay() -> Path | None:
    """The `conf/` folder of the running app, which is searched before fedq's own; None if there is none."""
    from fedq.config import conf_folder

    app = running_app()
    folder = None if app is None else app / "conf"
    return folder if folder is not None and folder.is_dir() and folder.resolve() != conf_folder().resolve() else None
