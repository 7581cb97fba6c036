"""Make an app's directory from the templates, or refuse with `value: rule. Fix` before anything is written."""

import os
from dataclasses import dataclass
from pathlib import Path

from fedq import __version__
from fedq.new.names import package_name

TEMPLATE = Path(__file__).parent / "template"
SUFFIX = ".in"  # so that no tool takes the templates for fedq's own code
# The three ways to run an app, and where each runs.
COMMANDS = """\
fedq run                            # simulate here, in one process
flwr run .                          # the same on Flower's simulation engine (pip install "fedq[ray]")
fedq deploy rehearse --clients 3    # the same on a real SuperLink and SuperNodes, on this machine"""
PACKAGE_FOLDER = "package"  # in the templates; its name in an app is the app's own


@dataclass(frozen=True)
class NewApp:
    """What was made."""

    folder: Path
    package: str
    files: tuple[Path, ...]  # relative to the folder


def make_app(folder: str | Path) -> NewApp:
    """The app that the folder's last part names; parents that are missing are made.

    Raises `ValueError` for a name or a place that cannot be used.
    """
    home = Path(folder).expanduser().resolve()  # Flower reads an app's name off its resolved directory too
    package = package_name(home.name)
    _check_place(home)
    words = {"commands": COMMANDS, "app": home.name, "package": package, "version": __version__}
    try:
        files = [_write(home, template, words) for template in sorted(TEMPLATE.rglob(f"*{SUFFIX}"))]
    except OSError as error:  # no room, or a file system that refuses in spite of its access bits
        raise ValueError(f"{home}: cannot be written, {error.strerror}. Choose another place") from error
    return NewApp(home, package, tuple(files))


def _write(home: Path, template: Path, words: dict[str, str]) -> Path:
    path = _place(template.relative_to(TEMPLATE), words["package"])
    text = template.read_text(encoding="utf-8")
    for name, word in words.items():
        text = text.replace(f"{{{{{name}}}}}", word)
    (home / path).parent.mkdir(parents=True, exist_ok=True)
    (home / path).write_text(text, encoding="utf-8")
    return path


def _check_place(home: Path) -> None:
    if home.exists() and not home.is_dir():
        raise ValueError(f"{home}: is a file. Name a directory that does not exist yet")
    there = next(p for p in (home, *home.parents) if p.exists())
    if not there.is_dir():
        raise ValueError(f"{home}: {there} is not a directory. Choose another place")
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise ValueError(f"{home}: {there} cannot be written. Choose another place")
    if there == home and any(home.iterdir()):
        raise ValueError(f"{home}: exists and is not empty. Name a directory that does not exist yet")


def _place(template: Path, package: str) -> Path:
    first, *rest = template.parts
    first = package if first == PACKAGE_FOLDER else first
    path = Path(first, *rest)
    path = path.with_name(path.name.removesuffix(SUFFIX))
    # A .gitignore in the templates would hide files from whoever builds fedq's wheel.
    return path.with_name(".gitignore") if path.name == "gitignore" else path
