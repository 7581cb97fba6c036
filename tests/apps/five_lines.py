"""The plain quickstart app, and the same app with the diff of docs/existing-app.md applied."""

import importlib
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

PLAIN = Path(__file__).parent / "quickstart"
DOCUMENT = Path(__file__).parents[2] / "docs" / "existing-app.md"


def diff() -> str:
    (block,) = re.findall(r"```diff\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def quantized(folder: Path) -> Path:
    """A copy of the plain app under `folder` with the diff applied."""
    app = folder / "quickstart"
    shutil.copytree(PLAIN, app, ignore=shutil.ignore_patterns("__pycache__"))
    for name, hunks in re.findall(r"^--- a/\S+\n\+\+\+ b/(\S+)\n(.*?)(?=^---|\Z)", diff(), re.MULTILINE | re.DOTALL):
        text = (app / name).read_text(encoding="utf-8")
        for hunk in filter(None, hunks.split("@@\n")):
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            assert text.count(old) == 1, f"{name}: {old!r} stands {text.count(old)} times"
            text = text.replace(old, new)
        (app / name).write_text(text, encoding="utf-8")
    return app


@dataclass(frozen=True)
class App:
    """Both halves of an app, and its model class."""

    client: ClientApp
    server: ServerApp
    task: Any


def loaded(folder: Path) -> App:
    """The app in that folder, whatever app of the same name was loaded before."""
    sys.path.insert(0, str(folder))
    try:
        for name in [name for name in sys.modules if name.split(".")[0] == "quickstart"]:
            del sys.modules[name]
        client, server, task = (
            importlib.import_module(f"quickstart.{name}") for name in ("client_app", "server_app", "task")
        )
    finally:
        sys.path.remove(str(folder))
    return App(client.app, server.app, task)
