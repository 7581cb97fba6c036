"""A run on somebody's SuperLink: bundle staged, run started, its rounds followed. Knows Flower's command line.

The server and the clients run elsewhere; here is the live view alone. Ctrl-C ends the view, not the run.
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
    """Flower refused the run, or the server says that it failed."""


@dataclass
class Followed:
    """What the server told so far."""

    run: str = ""
    host: str = ""
    folder: str = ""
    rows: list[RoundRow] = field(default_factory=list)
    result: dict[str, Any] | None = None
    failed: str = ""
    spent: bool = False  # it failed since too few clients have privacy budget left
    log: list[str] = field(default_factory=list)  # the last lines that were no events


_KEPT_LINES = 30


def deploy(config: Config, overrides: Sequence[str] | None = None, *, observers: Sequence[Observer] = ()) -> Result:
    """Run the experiment on the config's SuperLink connection and follow it; its files stay with the server.

    `overrides`: as they were typed, Hydra's own settings too, none of which may travel. Raises `ConfigError` before
    anything is started, and `DeploymentError` where the run fails.
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

            def placed(told: Followed) -> None:
                stop = f"flwr stop {told.run} {connection.name}"
                where = f"run {told.run}, in {told.folder} on {told.host}"
                watchers.on_note(f"{where}; Ctrl-C ends this view, {stop} the run")

            return end(result_of(submit(staged, connection, watchers.on_round, note=watchers.on_note, placed=placed)))


def submit(
    staged: Staged,
    connection: Connection,
    watch: Callable[[RoundRow], None],
    *,
    note: Callable[[str], None] = lambda text: None,
    placed: Callable[["Followed"], None] = lambda told: None,
    environment: Mapping[str, str] | None = None,
    said: Callable[[Sequence[str]], None] = lambda command: None,
) -> Followed:
    """Start the run with `flwr run` and read its log to the end.

    `said` sees the command; `placed` is called once, when it is known where the run folder lies.
    """
    config = staged.folder.parent / "run.toml"
    config.write_bytes(run_config(staged.overrides))
    command = [flower_command("flwr"), "run", str(staged.folder), connection.name, "--stream"]
    command += ["--run-config", str(config)]
    said(command)
    told = Followed()
    for line in _lines(command, environment):
        known = bool(told.folder)
        _hear(told, line, watch, note)
        if told.folder and not known:
            placed(told)
    if not told.run:
        raise DeploymentError(f"Flower did not start the run: {_last_words(told)}")
    if told.failed:
        raise (BudgetSpentError if told.spent else DeploymentError)(told.failed)
    if told.result is None:
        where = f"; what is done lies in {told.folder} on {told.host}" if told.folder else ""
        again = f"`flwr log {told.run} {connection.name}` shows it, `flwr stop {told.run} {connection.name}` ends it"
        raise DeploymentError(
            f"the view of run {told.run} ended, the run may go on: {again}{where}: {_last_words(told)}"
        )
    return told


def result_of(told: Followed) -> Result:
    """The result as the server told it: numbers, no arrays."""
    assert told.result is not None
    return replace(from_json(told.result), history=told.rows, elsewhere=f"{told.host}:{told.folder}")


def flower_command(name: str) -> str:
    """Flower's program of this very environment."""
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


def _hear(told: Followed, line: str, watch: Callable[[RoundRow], None], note: Callable[[str], None]) -> None:
    if not told.run and (started := re.search(r"Successfully started run (\d+)", line)):
        told.run = started[1]
    event = events.parse(line)
    if event is None:
        told.log = [*told.log[-_KEPT_LINES:], line.rstrip()]
        return
    kind = event.pop("event")
    try:
        if kind == "row":
            told.rows.append(RoundRow(**event))
            watch(told.rows[-1])
        elif kind == "note":
            note(str(event["text"]))
        elif kind == "folder":
            told.host, told.folder = str(event["host"]), str(event["path"])
        elif kind == "result":
            from_json(event)  # raises where it is none
            told.result = event
        elif kind == "failed":
            told.failed, told.spent = str(event["reason"]), event.get("budget") is True
    except (KeyError, TypeError, ValueError):  # a line that a user's model printed, or of another fedq
        told.log = [*told.log[-_KEPT_LINES:], line.rstrip()]


def _last_words(told: Followed) -> str:
    words = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" │╭╮╰╯─") for line in told.log]
    return " ".join(filter(None, words[-8:])) or "it said nothing"
