"""The app directory that this process runs: its configs and code, as Flower unpacked them. Knows paths alone."""

import sys
import tomllib
from pathlib import Path

COMPONENTS = {"serverapp": "fedq.app:server", "clientapp": "fedq.app:client"}


def is_app(folder: Path) -> bool:
    """Whether the folder's pyproject.toml names fedq's apps as its components."""
    try:
        with (folder / "pyproject.toml").open("rb") as file:
            return bool(tomllib.load(file)["tool"]["flwr"]["app"]["components"] == COMPONENTS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def running_app() -> Path | None:
    """Flower puts the directory of the app that it runs first on `sys.path`."""
    for entry in sys.path:
        if entry and is_app(Path(entry)):
            return Path(entry)
    return None


def overlay() -> Path | None:
    """The running app's own choices; fedq's stay behind them."""
    from fedq.config import conf_folder

    app = running_app()
    folder = None if app is None else app / "conf"
    return folder if folder is not None and folder.is_dir() and folder.resolve() != conf_folder().resolve() else None
