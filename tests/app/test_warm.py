"""A warm process answers as a message's own process would, for its own run alone; if it fails, nothing runs twice."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from typer.testing import CliRunner

import fedq
from fedq import codec
from fedq.app import client as app
from fedq.app import node as node_module
from fedq.app.direct import client as direct
from fedq.app.warm import frames, handover, place, process
from fedq.app.warm.handover import LOG, LostError, handed_over, start_if_none
from fedq.cli import app as command_line
from fedq.config import ConfigError
from fedq.core.lifetime import begun_at
from fedq.data import write_shard
from fedq.experiment import build
from fedq.flower import private as flower
from fedq.flower import wire
from fedq.privacy import Ledger
from tests.quick import compose

WORDS = ["clients=4", "quant=off", "privacy=off", "partition=iid", "model=linear", "train.epochs=null", "train.steps=2"]
PRIVATE = [*WORDS[:2], *WORDS[3:], "privacy=example", "privacy.noise_multiplier=1", "privacy.accountant=rdp"]
SOURCE = Path(fedq.__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _a_message_s_process(monkeypatch):
    flower.enter()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/flwr-clientapp"])
    monkeypatch.delitem(sys.modules, "ray", raising=False)


@pytest.fixture(scope="module")
def experiment():
    return build(compose(WORDS))


@pytest.fixture(scope="module")
def shard(experiment, tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.shard.npz"
    write_shard(path, experiment.dataset.train[:40], experiment.dataset)
    return path


@pytest.fixture
def context(shard, tmp_path):
    def make(words=WORDS, *, run=7, state=tmp_path / "state", **node_config):
        node = {"partition-id": 2, "data-path": str(shard), "state-dir": str(state), **node_config}
        return Context(run, 1, node, RecordDict(), {"overrides": json.dumps(words)})

    return make


@pytest.fixture
def training(experiment):
    layout = experiment.layout

    def make(round=1):
        weights = np.zeros(layout.size, np.float32)
        model = codec.encode(weights, "float32", layout=layout, kind="weights", round=round)
        return Message(wire.write_request(wire.Request(round, -1, {"model": model})), 1, wire.TRAIN)

    return make


@contextmanager
def serving(context, *, work=process.serve):
    """A process that waits for messages of that context, as a warm process does; yields its id."""
    node_module.prepare(context)
    with place.opened(Path(context.node_config["state-dir"])) as folder, ExitStack() as stack:
        name, (told, tell) = handover._key(context), os.pipe()
        pid = os.fork()
        if not pid:
            try:
                with place.listening(folder, name) as server:
                    os.write(tell, b"!")
                    work(server, alive=lambda: True, idle=60.0)
            finally:
                os._exit(0)
        stack.callback(os.waitpid, pid, 0)
        stack.callback(os.kill, pid, signal.SIGKILL)
        assert os.read(told, 1) == b"!"
        os.close(told)
        os.close(tell)
        yield pid


def read(reply, round=1, metrics=("num_examples", "loss")):
    """The reply or refusal of a message of training, as the server reads it."""
    return wire.read_reply(reply.content, round=round, packets=frozenset({"update"}), metrics=frozenset(metrics))


def log_of(context):
    path = Path(context.node_config["state-dir"]) / place.FOLDER / LOG
    return path.read_text() if path.exists() else ""


# --- an answer -------------------------------------------------------------------------------------------


def test_its_reply_has_the_bits_of_a_direct_one(context, training, tmp_path):
    asked = context()
    with serving(asked) as pid:
        reply = app(training(), asked)
    expected = direct(training(), context(state=tmp_path / "other"))
    assert read(reply) == read(expected)
    assert f"train answered by warm process {pid}" in log_of(asked)


def test_a_reply_s_envelope_repeats_the_request_s_times(context, training):
    message, asked = training(), context()
    with serving(asked):
        reply = app(message, asked)
    assert (reply.metadata.created_at, reply.metadata.ttl) == (message.metadata.created_at, message.metadata.ttl)
    assert reply.metadata.dst_node_id == message.metadata.src_node_id


def test_each_message_has_a_process_of_its_own(context, training):
    asked = context()
    with serving(asked) as pid:
        for round in (1, 2):
            assert read(app(training(round), asked), round).round == round
    assert log_of(asked).count(f"answered by warm process {pid}") == 2


def test_a_refusal_comes_back_as_a_code(context, training):
    asked = context(**{"partition-id": 99})
    with serving(asked):
        reply = app(training(), asked)
    assert read(reply) == wire.Refusal(1, "client_error")
    assert "node-config partition-id=99: no client of the experiment" in declined(asked)


def test_the_state_of_the_context_comes_back(context, training):
    asked = context()
    asked.state["mine"] = ConfigRecord({"count": 3})
    with serving(asked):
        app(training(), asked)
    assert asked.state["mine"]["count"] == 3


@pytest.mark.integration
def test_under_dp_the_spend_is_on_disk_once(context, training):
    asked = context(PRIVATE)
    with serving(asked):
        reply = read(app(training(), asked), metrics=())
    assert set(reply.packets) == {"update"}
    ledger = Ledger(Path(asked.node_config["state-dir"]) / "ledger.sqlite", access="read")
    ledger.verify()
    assert [(row.spend.round, row.spend.attempt) for row in ledger.rows()] == [(1, 0)]


@pytest.mark.integration
def test_under_dp_two_forks_draw_different_noise(context, training):
    asked = context(PRIVATE)
    with serving(asked):
        first, second = (read(app(training(), asked), metrics=()).packets["update"] for _ in range(2))
    assert first != second


def test_forks_do_not_share_the_global_generators():
    before = np.random.get_state()
    drawn = []
    for _ in range(2):
        np.random.seed(0)
        process._reseed()
        drawn.append(np.random.random())
    np.random.set_state(before)
    assert drawn[0] != drawn[1]


# --- for whom --------------------------------------------------------------------------------------------


def test_the_owner_can_switch_it_off(context, training):
    asked = context(warm=False)
    with serving(asked):
        assert handed_over(training(), asked) is None
    assert log_of(asked) == ""


def test_a_value_that_is_no_truth_value_is_refused_by_name(context):
    with pytest.raises(ConfigError, match=r"node-config warm=no: must be a bool. Use warm=false"):
        node_module.client_of(context(warm="no"))


def test_another_run_another_config_and_another_node_config_are_not_answered(context, training):
    with serving(context()):
        for other in (context(run=8), context([*WORDS, "seed=1"]), context(**{"partition-id": 1})):
            assert handed_over(training(), other) is None


def test_another_bundle_is_not_answered(context, training, tmp_path, monkeypatch):
    app_folder = tmp_path / "apps" / "tests.one"
    app_folder.mkdir(parents=True)
    (app_folder / "pyproject.toml").write_text(
        '[tool.flwr.app.components]\nserverapp = "fedq.app:server"\nclientapp = "fedq.app:client"\n'
    )
    monkeypatch.setattr(sys, "path", [str(app_folder), *sys.path])
    with serving(context()):
        assert handed_over(training(), context()) is not None
        (app_folder / "mine.py").write_text("x = 1\n")
        assert handed_over(training(), context()) is None


def test_a_process_that_is_not_flower_s_for_one_message_does_the_work_itself(context, training, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    with serving(context()):
        assert handed_over(training(), context()) is None
    start_if_none(context())
    assert not (Path(context().node_config["state-dir"]) / place.FOLDER / LOG).exists()


# --- failures --------------------------------------------------------------------------------------------


def test_a_warm_process_that_was_killed_leaves_the_work_to_the_next_one(context, training):
    asked = context()
    with serving(asked) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert handed_over(training(), asked) is None  # its socket is still there
    with serving(asked):
        assert handed_over(training(), asked) is not None


def hangs_up(server, **_):
    """Takes connections, and drops each before it is ready."""
    while True:
        link, _ = server.accept()
        socket.recv_fds(link, 1, 2)
        link.close()


def test_a_failure_before_the_work_begins_leaves_it_to_this_process(context, training):
    asked = context()
    with serving(asked, work=hangs_up):
        reply = app(training(), asked)
    assert read(reply).packets
    assert "the warm process is not ready" in log_of(asked)


def dies_at_work(server, **_):
    """Says that it is ready, and drops the connection once it is told to begin."""
    while True:
        link, _ = server.accept()
        socket.recv_fds(link, 1, 2)
        for _ in range(3):
            frames.receive(link)
        link.sendall(frames.READY)
        frames.exactly(link, 1)
        link.close()


def test_a_failure_after_the_work_has_begun_is_reported_and_not_tried_again(context, training):
    asked = context()
    with serving(asked, work=dies_at_work):
        with pytest.raises(LostError, match="ended while it worked"):
            handed_over(training(), asked)
        reply = app(training(3), asked)
    assert read(reply, 3) == wire.Refusal(3, "client_error")
    assert not (Path(asked.node_config["state-dir"]) / "runs").exists()  # nothing was done here
    assert "client_error: the fork of the warm process" in declined(asked)


def declined(context):
    return (Path(context.node_config["state-dir"]) / "declined.log").read_text()


KILLS = """
import os, signal
from torch import nn

class Kills(nn.Linear):
    def __init__(self, input_shape, num_outputs):
        super().__init__(64, num_outputs)

    def forward(self, x):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.integration
def test_a_fork_that_is_killed_after_its_spend_has_paid_once(context, training, tmp_path, monkeypatch):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "kills.yaml").write_text("_target_: kills_its_process.Kills\n")
    (tmp_path / "kills_its_process.py").write_text(KILLS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(node_module, "overlay", lambda: tmp_path / "conf")
    asked = context([w.replace("model=linear", "model=kills") for w in PRIVATE])
    with serving(asked):
        reply = app(training(), asked)
    assert read(reply) == wire.Refusal(1, "client_error")
    ledger = Ledger(Path(asked.node_config["state-dir"]) / "ledger.sqlite", access="read")
    ledger.verify()
    assert [(row.spend.round, row.spend.attempt) for row in ledger.rows()] == [(1, 0)]


# --- the folder ------------------------------------------------------------------------------------------


def test_a_folder_that_others_can_open_is_not_used(context, training):
    asked = context()
    with serving(asked):
        os.chmod(Path(asked.node_config["state-dir"]) / place.FOLDER, 0o750)
        assert handed_over(training(), asked) is None
    assert "mode 750, must be user" in log_of(asked)


def test_a_folder_of_another_user_is_not_used(tmp_path, monkeypatch):
    with place.opened(tmp_path):
        pass
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(place.UnsafePlaceError, match=f"must be user {other} and mode 700"), place.opened(tmp_path):
        pass


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / place.FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="warm"), place.opened(tmp_path):
        pass


def test_a_process_of_another_user_is_not_talked_to(tmp_path, monkeypatch):
    with place.opened(tmp_path) as folder, place.listening(folder, "a") as server:
        assert server is not None
        place.dial(folder, "a").close()
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        with pytest.raises(place.UnsafePlaceError, match="is at the other end, not of user 4711"):
            place.dial(folder, "a")


def test_folder_and_socket_are_for_the_owner_alone_at_any_length_of_the_path(tmp_path):
    state = tmp_path.joinpath(*["a" * 60] * 4)  # a socket's path has at most 107 bytes
    with place.opened(state) as folder, place.listening(folder, "b" * 32) as server:
        assert server is not None
        assert {p.name: p.stat().st_mode & 0o777 for p in (state / place.FOLDER).iterdir()} == {
            f"{'b' * 32}.lock": 0o600,
            f"{'b' * 32}.sock": 0o600,
        }
        assert (state / place.FOLDER).stat().st_mode & 0o777 == 0o700
        place.dial(folder, "b" * 32).close()
    assert list((state / place.FOLDER).iterdir()) == []


def test_a_name_has_one_process_and_what_dead_ones_left_is_removed(tmp_path):
    with place.opened(tmp_path) as folder, place.listening(folder, "a") as one:
        with place.listening(folder, "a") as two:
            assert (one is not None, two) == (True, None)
        for name in ("dead.lock", "dead.sock"):
            (tmp_path / place.FOLDER / name).touch()
        assert place.count(folder) == 2
        place.remove_dead(folder)
        assert place.count(folder) == 1
        place.dial(folder, "a").close()


# --- a node of fedq's own ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--superlink", "a:1"], "--host None: must be 127.0.0.1"),
        (["--host", "0.0.0.0", "--port", "9094"], "--host 0.0.0.0: must be 127.0.0.1"),
        (["--host=127.0.0.1", "--isolation", "subprocess"], "--isolation subprocess: fedq client node sets it"),
    ],
)
def test_a_node_is_not_started_with_arguments_that_do_not_fit(arguments, told):
    done = CliRunner().invoke(command_line, ["client", "node", *arguments])
    assert done.exit_code == 2
    assert told in done.stderr


# --- its end ---------------------------------------------------------------------------------------------


def test_it_ends_with_the_node_and_after_an_idle_time(tmp_path):
    with place.opened(tmp_path) as folder, place.listening(folder, "a") as server:
        process.serve(server, alive=lambda: False, idle=1e9)
        process.serve(server, alive=lambda: True, idle=0.0)
    assert begun_at(os.getpid()) is not None
    assert begun_at(2**22 + 1) is None  # beyond Linux's largest process id


NODE = """
import subprocess, sys
for message in sys.argv[2:]:
    print(subprocess.run([sys.executable, sys.argv[1], message], check=True, stdout=subprocess.PIPE, text=True).stdout)
"""
PROGRAM = """
import json, sys
from flwr.app import Context, RecordDict
from fedq.app import client
from fedq.flower import private as flower
flower.enter()
with open(sys.argv[1], "rb") as file:
    context, message = (bytes.fromhex(line.decode()) for line in file)
reply = client(flower.deserialized(message), flower.deserialized_context(context))
print(json.dumps([flower.serialized(reply).hex(), "torch" in sys.modules]))
"""


@pytest.mark.integration
def test_the_second_message_of_a_node_meets_the_warm_process_which_ends_with_the_node(context, training, tmp_path):
    program = tmp_path / "flwr-clientapp"
    program.write_text(PROGRAM)
    files = []
    for number, message in enumerate([Message(wire.empty(), 1, wire.HELLO), training(1), training(2)]):
        files.append(tmp_path / f"message-{number}")
        files[-1].write_text(f"{flower.serialized_context(context()).hex()}\n{flower.serialized(message).hex()}")
    # As with a SuperNode, each message's process is a child of one that goes on.
    command = [sys.executable, "-c", NODE, str(program), *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    answers = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert [torch for _, torch in answers] == [True, False, False]
    expected = direct(training(1), context(state=tmp_path / "other"))
    reply = flower.deserialized(bytes.fromhex(answers[1][0]))
    assert read(reply) == read(expected)
    said = log_of(context())
    (pid,) = {int(line.rsplit(" ", 1)[1]) for line in said.splitlines() if "train answered by warm process" in line}
    with suppress(ProcessLookupError):  # it may have ended already
        select.select([os.pidfd_open(pid)], [], [])
    assert [p.name for p in (tmp_path / "state" / place.FOLDER).iterdir()] == [LOG]
