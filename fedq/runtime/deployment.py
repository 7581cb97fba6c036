"""Run an experiment on an existing SuperLink: stage the bundle, start the run, follow its rounds.

Depends on Flower's command line. The server and the clients run elsewhere; only the live view is here. Ctrl-C ends the
view, not the run.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedq.config import Config, ConfigError, problems
from fedq.results import Result, RoundRow, events
from fedq.results.result import from_json
from fedq.runtime.connection import Connection, find
from fedq.runtime.observers import Observer, Observers, RunStart
from fedq.runtime.stage import Staged, app_here, run_config, say_insecure, stage
from fedq.server.roster import BudgetSpentError


class DeploymentError(RuntimeError):
    """Flower refused the run, or the server reported a failure."""


@dataclass
class Followed:
    """What the server has reported so far."""

    run: str = ""
    host: str = ""
    folder: str = ""
    rows: list[RoundRow] = field(default_factory=list)
    result: dict[str, Any] | None = None
    failed: str = ""
    spent: bool = False  # the run failed because too few clients have privacy budget left
    log: list[str] = field(default_factory=list)  # the last lines that were not events


_KEPT_LINES = 30


def deploy(config: Config, overrides: Sequence[str] | None = None, *, observers: Sequence[Observer] = ()) -> Result:
    """Run the experiment on the config's SuperLink connection and follow it; its files stay with the server.

    `overrides`: as they were typed, including Hydra's own settings, which may not be sent. Raises `ConfigError` before
    anything is started, and `DeploymentError` if the run fails.
    """
    if found := problems(config):
        raise ConfigError(found)
    with tempfile.TemporaryDirectory(prefix="fedq-") as scratch:
        staged = stage(config.overrides if overrides is None else overrides, config, app=app_here(), into=Path(scratch))
        connection = find(config.runtime.connection, insecure=config.runtime.insecure)
        if not connection.secure:
            say_insecure(staged)
        watchers = Observers(observers)
        with watchers.watching(RunStart.of(config, None, where=connection.address)) as end:

            def placed(followed: Followed) -> None:
                stop = f"flwr stop {followed.run} {connection.name}"
                where = f"run {followed.run}, in {followed.folder} on {followed.host}"
                watchers.on_note(f"{where}; Ctrl-C ends this view, {stop} the run")

            return end(result_of(submit(staged, connection, watchers.on_round, note=watchers.on_note, placed=placed)))


def submit(
    staged: Staged,
    connection: Connection,
    watch: Callable[[RoundRow], None],
    *,
    note: Callable[[str], None] = lambda text: None,
    placed: Callable[["Followed"], None] = lambda followed: None,
    environment: Mapping[str, str] | None = None,
    said: Callable[[Sequence[str]], None] = lambda command: None,
) -> Followed:
    """Start the run with `flwr run` and read its log to the end.

    `said` gets the command; `placed` is called once, as soon as the position of the run folder is known.
    """
    config = staged.folder.parent / "run.toml"
    config.write_bytes(run_config(staged.overrides))
    command = [flower_command("flwr"), "run", str(staged.folder), connection.name, "--stream"]
    command += ["--run-config", str(config)]
    said(command)
    followed = Followed()
    for line in _lines(command, environment):
        known = bool(followed.folder)
        _read_line(followed, line, watch, note)
        if followed.folder and not known:
            placed(followed)
    if not followed.run:
        raise DeploymentError(f"Flower did not start the run: {_end_of_log(followed)}")
    if followed.failed:
        raise (BudgetSpentError if followed.spent else DeploymentError)(followed.failed)
    if followed.result is None:
        where = f"; its files are in {followed.folder} on {followed.host}" if followed.folder else ""
        target = f"{followed.run} {connection.name}"
        again = f"`flwr log {target}` shows it, `flwr stop {target}` ends it"
        raise DeploymentError(
            f"the view of run {followed.run} ended, but the run may continue: {again}{where}: {_end_of_log(followed)}"
        )
    return followed


def result_of(followed: Followed) -> Result:
    """The result as the server reported it: numbers, no arrays."""
    assert followed.result is not None
    return replace(from_json(followed.result), history=followed.rows, elsewhere=f"{followed.host}:{followed.folder}")


def flower_command(name: str) -> str:
    """Flower's program from the current Python environment."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _lines(command: Sequence[str], environment: Mapping[str, str] | None) -> Iterator[str]:
    env = {**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            yield from process.stdout
        except BaseException:
            process.terminate()
            raise


def _read_line(followed: Followed, line: str, watch: Callable[[RoundRow], None], note: Callable[[str], None]) -> None:
    if not followed.run and (started := re.search(r"Successfully started run (\d+)", line)):
        followed.run = started[1]
    event = events.parse(line)
    if event is None:
        followed.log = [*followed.log[-_KEPT_LINES:], line.rstrip()]
        return
    kind = event.pop("event")
    try:
        if kind == "row":
            followed.rows.append(RoundRow(**event))
            watch(followed.rows[-1])
        elif kind == "note":
            note(str(event["text"]))
        elif kind == "folder":
            followed.host, followed.folder = str(event["host"]), str(event["path"])
        elif kind == "result":
            from_json(event)  # raises if it is not a result
            followed.result = event
        elif kind == "failed":
            followed.failed, followed.spent = str(event["reason"]), event.get("budget") is True
    except (KeyError, TypeError, ValueError):  # printed by a user's model, or by another version of fedq
        followed.log = [*followed.log[-_KEPT_LINES:], line.rstrip()]


def _end_of_log(followed: Followed) -> str:
    words = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" │╭╮╰╯─") for line in followed.log]
    return " ".join(filter(None, words[-8:])) or "it printed nothing"
