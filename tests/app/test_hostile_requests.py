"""What a server could learn or break by asking: values of the data, files of the machine, texts of errors, time."""

import datetime
import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedq import codec
from fedq.app import client as app
from fedq.app import node as node_module
from fedq.app.acceptance import failures_since
from fedq.app.answer import client_app
from fedq.config import Config, ConfigError, network
from fedq.config.option import declared
from fedq.experiment import Site, build
from fedq.experiment.binding import check_paths
from fedq.flower import private as flower
from fedq.flower import wire
from fedq.flower.private import serialized
from fedq.privacy import Ledger
from tests.quick import compose

pytestmark = [pytest.mark.integration, pytest.mark.hostile]
SECRET = "/srv/patients/record-41.csv"
WORDS = ["clients=4", "quant=off", "partition=iid", "model=linear", "train.epochs=null", "train.steps=1", "rounds=2"]
PRIVATE = [*WORDS, "privacy=example", "privacy.target_epsilon=8", "privacy.nominal_examples=40"]
PRIVATE += ["privacy.sample_rate=0.5", "privacy.accountant=rdp"]
TABLE = [*PRIVATE, "data=outcomes"]


@pytest.fixture(autouse=True)
def _flower(tmp_path, monkeypatch):
    flower.enter()
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path / "home"))
    node_module._experiment.cache_clear()
    node_module._config.cache_clear()


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A clinic's own table, and an app whose loader is told columns and classes by its conf/."""
    path = tmp_path / "patients.csv"
    rows = [f"{i % 7},{i % 5},{'yes' if i % 3 else 'no'}" for i in range(60)]
    path.write_text("\n".join(["a,b,outcome", *rows]) + "\n")
    conf = tmp_path / "conf"
    (conf / "data").mkdir(parents=True)
    monkeypatch.setattr(node_module, "overlay", lambda: conf)

    def choose(**options):
        text = {"_target_": "fedq.data.csv", "path": "/on/the/server.csv", "standardize": False, **options}
        (conf / "data" / "outcomes.yaml").write_text(json.dumps(text))
        node_module._config.cache_clear()
        node_module._experiment.cache_clear()

    choose(target="outcome", classes=["no", "yes"])
    return path, choose


def context(overrides, **config):
    config = {key.replace("_", "-"): str(v) if isinstance(v, Path) else v for key, v in config.items()}
    return Context(7, 1, {"partition-id": 2, **config}, RecordDict(), {"overrides": json.dumps(overrides)})


def greet(overrides, **config):
    message = Message(wire.empty(), dst_node_id=1, message_type=wire.HELLO)
    return wire.read_hello(app(message, context(overrides, **config)).content)


def train(overrides, weights, layout, *, round=1, **config):
    packet = codec.encode(weights, "float32", layout=layout, kind="weights", round=round)
    content = wire.write_request(wire.Request(round, -1, {"model": packet}))
    message = Message(content, dst_node_id=1, message_type=wire.TRAIN)
    reply = app(message, context(overrides, **config))
    assert not reply.has_error()
    return reply.content


# --- what a handshake says of the data ------------------------------------------------------------------------


QUESTIONS = [
    {"target": "outcome", "classes": ["no"]},  # does anybody hold a "yes"?
    {"target": "outcome", "classes": ["yes"]},
    {"target": "a", "classes": ["0", "1", "2", "3", "4", "5", "6"]},
    {"target": "a", "classes": ["0", "1"]},
    {"target": "no such column", "classes": ["no", "yes"]},
    {"target": "outcome", "classes": ["no", "yes"], "ignore": ["b"]},
    {"target": "outcome", "task": "regression"},
]


def test_a_handshake_answers_the_same_whatever_is_asked_about_the_data(table, tmp_path):
    """`client_error` came exactly when somebody held a value: every question was answered, and nothing was noted."""
    path, choose = table
    answers = []
    for number, question in enumerate(QUESTIONS):
        choose(**question)
        answers.append(greet(TABLE, data_path=path, state_dir=tmp_path / f"state{number}"))
    assert {(answer.identity, answer.layout) for answer in answers} == {("2", b"")}


def test_a_handshake_opens_no_data(table, tmp_path):
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    path, _ = table
    greet(TABLE, data_path=path, state_dir=tmp_path / "state")
    assert str(path) not in opened


def test_what_fails_on_the_data_costs_as_much_as_an_answer_and_says_the_same(table, tmp_path):
    path, choose = table
    experiment = build(compose(TABLE, overlay=tmp_path / "conf"), owner=Site("2", path))
    layout, weights = experiment.layout, experiment.initial
    replies, epsilons = [], []
    for number, question in enumerate([*QUESTIONS[:6], {"target": "outcome", "classes": ["no", "yes"]}]):
        choose(**question)
        state = tmp_path / f"state{number}"
        content = train(TABLE, weights, layout, data_path=path, state_dir=state)
        replies.append(dict(content.get("fedq.refusal", {})).get("reason", "update"))
        epsilons.append(Ledger(state / "ledger.sqlite", access="read").epsilon(1e-5, accountant="rdp"))
    assert replies == ["declined"] * 6 + ["update"]
    assert len(set(epsilons)) == 1
    assert epsilons[0] > 0


def test_who_asked_for_what_is_noted_in_every_phase(table, tmp_path):
    path, choose = table
    state = tmp_path / "state"
    greet([*PRIVATE, "privacy=off"], data_path=path, state_dir=state, epsilon=3.0)  # declined
    choose(target="outcome", classes=["no"])
    experiment = build(compose(PRIVATE))
    train(TABLE, experiment.initial, experiment.layout, data_path=path, state_dir=state)  # fails on the data
    lines = (state / "declined.log").read_text().splitlines()
    assert [re.sub(r"^\S+ 'run 7' ", "", line).partition(":")[0] for line in lines] == ["hello", "train, round 1"]
    assert all("asked for [" in line for line in lines)
    assert "declined" in lines[1]


def policy(tmp_path, more=""):
    path = tmp_path / "policy.toml"
    path.write_text(f'unit = "example"\nmax_epsilon = 8.0\nmax_delta = 1e-5\n{more}')
    return path


def test_what_a_request_may_choose_of_the_data_is_on_the_owner_s_list(table, tmp_path):
    path, choose = table
    node = {"data_path": path, "state_dir": tmp_path / "state"}
    listed = '[data]\ntarget = ["outcome"]\nclasses = [["no", "yes"]]\nstandardize = [false]\n'
    assert greet(TABLE, policy=policy(tmp_path), **node).reason == "policy"
    assert greet(TABLE, policy=policy(tmp_path, listed), **node).identity == "2"
    choose(target="outcome", classes=["no"])
    assert greet(TABLE, policy=policy(tmp_path, listed), **node).reason == "policy"
    assert (
        "data.classes=['no'], which the policy's [data] does not list"
        in (tmp_path / "state" / "declined.log").read_text()
    )


def test_an_owner_with_a_budget_and_no_policy_is_asked_for_one_where_a_run_chooses(table, tmp_path):
    path, _ = table
    said = greet(TABLE, data_path=path, state_dir=tmp_path / "state", epsilon=3.0)
    assert said.reason == "policy"
    assert "a policy file lists what it may under [data]" in (tmp_path / "state" / "declined.log").read_text()


@pytest.mark.parametrize("name", ["plain", "refused or failed within an hour"])
def test_asking_on_and_on_ends_for_an_hour(table, tmp_path, name):
    """Also where the request quotes what the log says of too many."""
    path, _ = table
    node = {
        "data_path": path,
        "state_dir": tmp_path / "state",
        "policy": policy(tmp_path, "max_failures_an_hour = 3\n"),
    }
    for _ in range(5):
        assert greet([*TABLE, f'name="{name}"'], **node).reason == "policy"
    lines = (tmp_path / "state" / "declined.log").read_text().splitlines()
    assert ["3 requests were refused or failed within an hour" in line for line in lines] == [False] * 3 + [True] * 2


def test_lines_of_an_editor_s_hand_count_as_old(tmp_path):
    log = tmp_path / "declined.log"
    log.write_text("2026-01-01 12:00 noted by hand\nno time at all\n\n")
    assert failures_since(log, datetime.datetime.now(datetime.UTC)) == 0


# --- limits -------------------------------------------------------------------------------------------------------


def test_a_delta_alone_is_no_limit_and_is_refused():
    """It was admitted: epsilon 11,135 a round."""
    from fedq.app.node_config import Node

    with pytest.raises(ConfigError, match="node-config delta=1e-05: limits nothing without an epsilon"):
        Node.read({"name": "a", "delta": 1e-5})
    assert Node.read({"name": "a", "delta": 1e-5, "policy": "/p.toml"}).delta == 1e-5
    assert Node.read({"name": "a", "epsilon": 3.0}).delta == 1e-5


def test_an_owner_with_a_budget_does_not_get_weaker_noise_unasked(tmp_path):
    node = {"state_dir": tmp_path / "state", "epsilon": 3.0}
    assert greet([*PRIVATE, "privacy.noise=gaussian"], **node).reason == "policy"


def test_an_owner_without_any_limit_is_warned(tmp_path, capfd):
    greet([*WORDS, "privacy=off"], state_dir=tmp_path / "state")
    assert "it accepts privacy=off" in capfd.readouterr().err
    (log,) = tmp_path.glob("state/runs/*/log.txt")
    assert "it accepts privacy=off" in log.read_text()


# --- paths ----------------------------------------------------------------------------------------------------------


TEXTS = [key for key, option in declared(Config).items() if option.type not in ("int", "float", "bool")]


@pytest.mark.parametrize("key", TEXTS)
def test_no_key_of_an_experiment_brings_a_path_over_the_network(key, tmp_path):
    """Either the key may not travel, or a path is no value of it, or nothing that is built of it opens the path."""
    trap = tmp_path / "trap.npy"
    np.save(trap, np.zeros((2, 1, 8, 8), np.float32))
    override = f"{key}={trap}"
    if network.refused(override) is not None:
        return
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    with suppress(ConfigError):
        build(compose(["quant=int8", "clients=4", "model=linear", override]), owner=Site("2"))
    assert str(trap) not in opened


def test_the_file_of_calibration_is_not_opened_by_a_client(tmp_path):
    """It was at the handshake: an oracle for files and shapes, and a named pipe hung the client."""
    assert "holds a path" in network.refused("quant.calibration=/etc/hostname")
    os.mkfifo(tmp_path / "pipe")
    words = ["quant=int8", "quant.activations=dynamic", "clients=4", "model=mlp"]
    config = compose([*words, f"quant.calibration={tmp_path / 'pipe'}"])  # as an app's own YAML might say
    assert build(config, owner=Site("2")).quantized is not None


def loads(path: str, vocabulary: Path | None = None, words: "os.PathLike[str] | None" = None, size: int = 3): ...


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"vocabulary": "/etc/passwd"}, ["vocabulary"]),
        ({"words": "/etc/passwd", "size": 4}, ["words"]),
        ({"size": 4, "labels": "/etc/passwd", "_paths_": ["labels"]}, ["labels"]),
        ({"path": "/own/data", "size": 4}, []),
    ],
)
def test_arguments_of_a_user_s_callable_that_hold_paths_are_refused_on_a_client(options, names):
    config, found = compose([]), []
    config.data = {"_target_": "mine.loads", **options}
    assert check_paths(config, "data", loads, found, allowed=("path",)) == (not names)
    assert [problem.key for problem in found] == [f"data.{name}" for name in names]


# --- time -----------------------------------------------------------------------------------------------------------


def test_a_message_has_a_deadline(tmp_path, monkeypatch):
    """A loader that reads a named pipe kept its client for ever."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(node_module, "HELLO_SECONDS", 0.5)
    hangs = client_app(
        lambda context: (tmp_path / "pipe").read_text(), note=node_module.note, bounds=node_module.bounds
    )
    message = Message(wire.empty(), dst_node_id=1, message_type=wire.HELLO)
    reply = hangs(message, context(WORDS, state_dir=tmp_path / "state"))
    assert reply.content["fedq.refusal"]["reason"] == "client_error"
    assert "took longer than" in (tmp_path / "state" / "declined.log").read_text()


# --- text -----------------------------------------------------------------------------------------------------------


def recursing():
    recursing()


ERRORS = [
    lambda: ValueError(f"{SECRET} \udc80"),
    lambda: UnicodeEncodeError("utf-8", SECRET, 0, 1, "surrogates"),
    lambda: MemoryError(SECRET),
    lambda: RecursionError(SECRET),
    lambda: SystemExit(SECRET),
    lambda: type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})(SECRET),
    lambda: type("Odder", (Exception,), {"__str__": lambda self: recursing()})(SECRET),
    lambda: BaseExceptionGroup("many", [ValueError(SECRET)]),
    lambda: type("PanicException", (BaseException,), {})(SECRET),  # what a Rust extension raises
    lambda: GeneratorExit(SECRET),
]
BROKEN = {"nothing": None, "disk": OSError(28, "No space left on device", SECRET), "memory": MemoryError(SECRET)}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("kind", [wire.HELLO, wire.TRAIN, wire.EVALUATE])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(make=st.sampled_from(ERRORS), text=st.text())
def test_whatever_fails_a_code_leaves_and_nothing_else(make, text, kind, broken, monkeypatch, capfd):
    """A character that no encoding holds made the guard itself fail, and Flower sent a byte of the text."""

    def raises(context):
        error = make()
        error.args = (*error.args, text)
        raise error

    def note(context, why):
        if BROKEN[broken] is not None:
            raise BROKEN[broken]

    class Full:
        encoding = "ascii"

        def write(self, said):
            if BROKEN[broken] is not None:
                raise BROKEN[broken]
            said.encode("ascii")

        def flush(self): ...

    monkeypatch.setattr(sys, "stderr", Full())
    content = wire.empty() if kind == wire.HELLO else wire.write_request(wire.Request(5, -1, {"model": b""}))
    message = Message(content, dst_node_id=1, message_type=kind)
    reply = client_app(raises, note=note)(message, context(WORDS))
    monkeypatch.undo()
    assert not reply.has_error()
    round = 0 if kind == wire.HELLO else 5
    assert dict(reply.content["fedq.refusal"]) == {"round": round, "reason": "client_error"}
    assert SECRET.encode() not in serialized(reply)
