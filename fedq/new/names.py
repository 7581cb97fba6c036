"""Checks the name of an app. Knows Flower's rule and the modules that Python can import; not files."""

import importlib.metadata
import keyword
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

LONGEST = 32  # characters: Flower's limit
# The app's own folders, and those that `flwr build` silently leaves out of every bundle.
RESERVED = {"conf", "outputs", "build", "eggs", "env", "lib", "lib64", "parts", "venv"}


def package_name(app: str) -> str:
    """The package of an app: `my-hospital` -> `my_hospital`. So two apps on one machine share no module name.

    Raises `ValueError` for a name that Flower refuses, or whose package would hide another module.
    """
    if not re.fullmatch(rf"[A-Za-z][A-Za-z0-9-]{{0,{LONGEST - 1}}}", app):
        rule = f"Flower wants a letter first, then letters, digits and hyphens, at most {LONGEST} characters in all"
        raise ValueError(f"{app or 'DIR'}: {rule}. Try {_near(app)}")
    if app.endswith("-"):
        raise ValueError(f"{app}: Python's packaging refuses a name that ends in a hyphen. Try {app.rstrip('-')}")
    package = app.lower().replace("-", "_")
    if why := _taken(app, package):
        raise ValueError(f"{app}: {why}. Try my-{app[: LONGEST - 3]}".rstrip("-"))
    return package


def _taken(app: str, package: str) -> str | None:
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        return f"{package} is a keyword of Python"
    if package in RESERVED:
        return f"{package}/ is a folder of every app, or one that Flower leaves out of every bundle"
    if package in {"fedq", *sys.stdlib_module_names} or _importable(package):
        return f"its package {package} would hide the installed module of that name"
    try:
        importlib.metadata.distribution(app)
    except importlib.metadata.PackageNotFoundError:
        return None
    return "a package of that name is installed"


def _importable(package: str) -> bool:
    """Whether Python finds the module outside the current folder, which may hold the app itself."""
    here = Path.cwd()
    elsewhere = [place for place in sys.path if place and Path(place).resolve() != here]
    return PathFinder.find_spec(package, elsewhere) is not None


def _near(app: str) -> str:
    near = re.sub(r"[^A-Za-z0-9]+", "-", app).strip("-0123456789")[:LONGEST].rstrip("-")
    return near or "my-app"
