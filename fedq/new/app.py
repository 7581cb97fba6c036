"""Makes an app's directory from templates, or raises ValueError `value: rule. Fix` before it writes anything."""

import os
from dataclasses import dataclass
from pathlib import Path

from fedq import __version__
from fedq.new.names import package_name

TEMPLATE = Path(__file__).parent / "template"
SUFFIX = ".in"  # so that no tool treats the templates as fedq's own code
# The three ways to run an app, and where each runs.
COMMANDS = """\
fedq run                            # simulate here, in one process
flwr run .                          # the same on Flower's simulation engine (pip install "fedq[ray]")
fedq deploy rehearse --clients 3    # the same on a real SuperLink and SuperNodes, on this machine"""
PACKAGE_FOLDER = "package"  # name in the templates; an app uses the name of its package


@dataclass(frozen=True)
class NewApp:
    """The new app."""

    folder: Path
    package: str
    files: tuple[Path, ...]  # relative to the folder


def make_app(folder: str | Path) -> NewApp:
    """Make the app; the folder's last part is its name, and missing parents are created.

    Raises `ValueError` for a name or a place that cannot be used.
    """
    home = Path(folder).expanduser().resolve()  # Flower also takes an app's name from its resolved directory
    package = package_name(home.name)
    _check_place(home)
    words = {"commands": COMMANDS, "app": home.name, "package": package, "version": __version__}
    try:
        files = [_write(home, template, words) for template in sorted(TEMPLATE.rglob(f"*{SUFFIX}"))]
    except OSError as error:  # disk full, or a file system that refuses despite its access bits
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
    # A .gitignore in the templates would hide files from the build of fedq's wheel.
    return path.with_name(".gitignore") if path.name == "gitignore" else path
