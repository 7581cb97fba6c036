"""Following a run on somebody's SuperLink: what Flower's command line prints becomes rows, a result, or an error."""

import json
import shlex
import sys
import tomllib
from dataclasses import asdict

import pytest

from fedq.results import Result, RoundRow, events
from fedq.runtime import deployment
from fedq.runtime.connection import Connection
from fedq.runtime.deployment import DeploymentError, result_of, submit
from fedq.runtime.stage import Staged

ROWS = [RoundRow(0, "initial", accuracy=0.1), RoundRow(1, "ok", accuracy=0.8, clients=2, reasons={"no_reply": 1})]
RESULT = Result(
    name="demo",
    status="finished",
    rounds=1,
    seed=0,
    wall_seconds=2.0,
    accuracy=0.8,
    accuracy_source="server_test",
    bytes_up=1,
    bytes_down=2,
    float32_bytes_up=3,
    float32_bytes_down=4,
)
STARTED = "🎊 Successfully started run 4711"
FOLDER = events.line("folder", host="srv", path="/runs/a", rounds=1, name="demo")
DONE = [
    STARTED,
    FOLDER,
    *(events.line("row", **asdict(row)) for row in ROWS),
    events.line("result", **RESULT.to_dict()),
]


class Seen:
    def __init__(self):
        self.rows, self.notes, self.commands, self.placed = [], [], [], []


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Follows what a stand-in for Flower's command line prints; that command line is the network here."""

    def follow(lines, *, overrides=(), environment=None, tail=""):
        program = tmp_path / "flwr"
        text = "".join(line + "\n" for line in lines) + tail
        script = (
            "import json, os, sys\n"
            "open(sys.argv[0] + '.told', 'w').write(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
            f"sys.stdout.buffer.write({text.encode()!r})\n"
        )
        program.write_text(f"#!{sys.executable}\n{script}")
        program.chmod(0o700)
        monkeypatch.setattr(deployment, "flower_command", lambda name: str(program))
        (tmp_path / "app").mkdir(exist_ok=True)
        seen = Seen()
        follow.seen = seen
        seen.told = submit(
            Staged(tmp_path / "app", list(overrides), 1),
            Connection("mine", "127.0.0.1:9093"),
            seen.rows.append,
            note=seen.notes.append,
            placed=lambda told: seen.placed.append((told.run, told.host, told.folder)),
            environment=environment,
            said=lambda command: seen.commands.append(list(command)),
        )
        seen.arguments, seen.environment = json.loads((tmp_path / "flwr.told").read_text())
        return seen

    return follow


def test_rows_are_seen_as_they_come_and_the_result_is_the_server_s(follow):
    seen = follow(DONE)
    assert seen.rows == ROWS
    result = result_of(seen.told)
    assert (result.accuracy, result.bytes_up, result.history) == (0.8, 1, ROWS)
    assert result.elsewhere == "srv:/runs/a"
    assert result.folder is None
    assert result.arrays == {}


def test_where_the_run_folder_lies_is_said_once_and_as_soon_as_it_is_known(follow):
    assert follow([*DONE[:2], FOLDER, *DONE[2:]]).placed == [("4711", "srv", "/runs/a")]


def test_a_note_of_the_server_is_passed_on(follow):
    assert "waiting for client 2" in follow([STARTED, events.line("note", text="waiting for client 2"), *DONE]).notes


def test_what_others_print_between_events_is_no_matter(follow):
    noise = ["", "INFO : starting", "Traceback (most recent call last):", "fedq-event {torn", "\x1b[2J", "é"]
    mixed = [line for pair in zip(noise, [*DONE, ""], strict=False) for line in pair]
    assert follow(mixed).rows == ROWS


@pytest.mark.parametrize(
    "line",
    [
        events.line("row"),
        events.line("row", round=1, status="nosuch"),
        events.line("row", round=1, status="ok", colour="blue"),
        events.line("note"),
        events.line("folder", host="srv"),
        events.line("failed"),
        events.line("result"),
        events.line("result", **{**RESULT.to_dict(), "status": "nosuch"}),
        events.line("of a later fedq", x=1),
    ],
)
def test_an_event_that_is_not_what_it_should_be_is_passed_over(follow, line):
    assert follow([STARTED, line, *DONE]).rows == ROWS


def test_bytes_that_are_no_text_do_not_end_the_view(tmp_path, follow, monkeypatch):
    program = tmp_path / "flwr"
    follow(DONE)
    program.write_text(
        program.read_text().replace("sys.stdout.buffer.write(", "sys.stdout.buffer.write(b'\\xff\\xfe\\n' + ")
    )
    told = submit(Staged(tmp_path / "app", [], 1), Connection("mine", "x:1"), lambda row: None)
    assert told.rows == ROWS


def test_the_command_is_the_one_that_a_person_would_type(follow, tmp_path):
    seen = follow(DONE, overrides=["rounds=3", 'name="a b"'], environment={"FLWR_HOME": "/flower"})
    app, config = str(tmp_path / "app"), str(tmp_path / "run.toml")
    assert seen.arguments == ["run", app, "mine", "--stream", "--run-config", config]
    assert seen.commands == [[str(tmp_path / "flwr"), *seen.arguments]]
    assert shlex.split(shlex.join(seen.commands[0])) == seen.commands[0]
    assert seen.environment["FLWR_HOME"] == "/flower"
    assert seen.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    config = tomllib.loads((tmp_path / "run.toml").read_text())
    assert json.loads(config["overrides"]) == ["rounds=3", 'name="a b"']


# --- runs that go wrong --------------------------------------------------------------------------------


def test_a_run_that_flower_does_not_start_is_told_in_flower_s_words(follow):
    frame = ["\x1b[31m╭─ Error ─╮\x1b[0m", "│ The SuperLink refused the key. │", "╰─────────╯"]
    with pytest.raises(DeploymentError, match=r"^Flower did not start the run: .*The SuperLink refused the key\."):
        follow(frame)


def test_a_command_that_says_nothing_is_told_so(follow):
    with pytest.raises(DeploymentError, match="Flower did not start the run: it printed nothing"):
        follow([])


def test_a_run_that_the_server_calls_failed_is_told_in_its_words(follow):
    reason = "client 2 did not come within runtime.wait=5 s; 1 of 2 answered"
    with pytest.raises(DeploymentError, match=rf"^{reason}$"):
        follow([STARTED, FOLDER, events.line("failed", reason=reason), "ERROR : Traceback"])


def test_a_run_that_ends_without_a_result_says_where_its_files_lie_and_what_was_said_last(follow):
    with pytest.raises(
        DeploymentError, match=r"run 4711 ended, but the run may continue: .* in /runs/a on srv: .*out of memory"
    ):
        follow([STARTED, FOLDER, DONE[2], "Killed: out of memory"])
    assert follow.seen.rows == ROWS[:1]


def test_a_torn_result_is_none(follow):
    with pytest.raises(DeploymentError, match="the run may continue"):
        follow(DONE[:-1], tail=DONE[-1][:-20])


def test_only_the_last_words_of_a_long_log_are_kept(follow):
    with pytest.raises(DeploymentError, match=r"line 9999$") as caught:
        follow([STARTED, *(f"line {i}" for i in range(10_000))])
    assert len(str(caught.value)) < 500
