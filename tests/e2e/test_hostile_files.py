"""Configs, run folders and ledgers that another party wrote: they run no code, and open no file that hangs or harms."""

import copy
import os
import shutil
import struct
import subprocess
import sys
import textwrap

import pytest
import yaml
from typer.testing import CliRunner

import fedq
from fedq.cli import app
from fedq.experiment.foreign import FACTORIES

pytestmark = [pytest.mark.hostile, pytest.mark.usefixtures("terminal_elsewhere")]
WORDS = ["rounds=1", "clients=2", "model.hidden=[8]", "data.nominal_examples=1258", "quant=int8"]
DP = ["privacy=example", "privacy.accountant=rdp", "train.epochs=null", "train.steps=1"]
QUICK = ["--canaries", "200", "--pairs", "2"]
READERS = {
    "audit CONFIG": lambda run: ["audit", run / "config.yaml", *QUICK],
    "audit RUN": lambda run: ["audit", run, *QUICK],
    "export RUN": lambda run: ["export", run, "--output", "again.onnx"],
    "inspect RUN": lambda run: ["inspect", run],
    "privacy statement RUN": lambda run: ["privacy", "statement", run],
}
BUILDERS = [name for name in READERS if "statement" not in name]
SHELL = {"_target_": "os.system", "command": "touch ran"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fedq.run([*WORDS, *DP], root=tmp_path_factory.mktemp("runs"), progress=False).folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def rewrite(run, **changed):
    """Put values in the place of a run's own: group -> (key -> value), or the value of a key."""
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for group, values in changed.items():
        config[group] = copy.copy(values) if group in ("model", "data", "name") else {**config[group], **values}
    path.write_text(yaml.safe_dump(config))


def fedq_says(*arguments, status):
    answer = CliRunner().invoke(app, [str(a) for a in arguments])
    assert answer.exit_code == status, answer.output
    assert "Traceback" not in answer.output
    return " ".join(answer.output.split())


TARGETS = {
    "a shell": SHELL,
    "by way of a module of fedq": {"_target_": "fedq.core.durable.os.system", "command": "touch ran"},
    "a function of fedq that writes": {"_target_": "fedq.core.durable.write_bytes", "path": "ran", "content": "x"},
    "a class of fedq that reads any file": {"_target_": "fedq.data.read_idx", "path": "/etc/hostname"},
    "the command line of fedq": {"_target_": "fedq.cli.app", "args": ["new", "ran"], "standalone_mode": False},
    "a process": {"_target_": "subprocess.check_call", "args": ["touch", "ran"]},
    "an expression": {"_target_": "builtins.eval", "source": "open('ran', 'w')"},
    "torch's own unpickler": {"_target_": "torch.load", "f": "model.pt", "weights_only": False},
    "a module for its import alone": {"_target_": "planted.nothing"},
    "a factory of the other group": {"_target_": "fedq.models.mlp"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "target", "group"),
    [(reader, "a shell", group) for reader in BUILDERS for group in ("data", "model")]
    + [("inspect RUN", target, "data") for target in TARGETS if target != "a shell"],
)
def test_a_target_of_a_run_s_config_is_refused_and_does_not_run(reader, target, group, run, tmp_path):
    (tmp_path / "planted.py").write_text("open('ran', 'w').close()\n")
    rewrite(run, **{group: TARGETS[target]})
    told = fedq_says(*READERS[reader](run), status=2)
    assert f"{group}._target_={TARGETS[target]['_target_']}" in told
    assert f"add --allow {TARGETS[target]['_target_'].rpartition('.')[0]}" in told
    assert not os.path.exists("ran")
    assert "planted" not in sys.modules


def test_a_statement_reads_a_hostile_config_as_text(run):
    rewrite(run, data={**SHELL, "nominal_examples": 1258}, model=SHELL)
    fedq_says("privacy", "statement", run, status=0)
    assert not os.path.exists("ran")


def overlay(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / "conf" / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


DEFAULT = """
    # @package _global_
    defaults:
      - override /data: mine
      - override /privacy: example
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["audit", "privacy plan"])
@pytest.mark.parametrize("words", [["experiment=default"], [], ["data=mine", "privacy=example"]])
def test_a_folder_of_choices_runs_nothing(command, words, tmp_path):
    overlay(tmp_path, data__mine="_target_: os.system\ncommand: touch ran\nnominal_examples: 1000\n")
    overlay(tmp_path, experiment__default=DEFAULT)
    told = fedq_says(*command.split(), *words, status=2 if command == "audit" else 0)
    assert not os.path.exists("ran")
    assert command != "audit" or "data._target_=os.system" in told


def test_the_choice_file_itself_is_no_config_of_a_run(tmp_path):
    overlay(tmp_path, experiment__default=DEFAULT)
    assert "not the config of a run" in fedq_says("audit", "conf/experiment/default.yaml", status=2)


HYDRA = {
    "a callback": "hydra:\n  callbacks:\n    c: {_target_: os.system, command: touch ran}\n",
    "a launcher": "hydra:\n  launcher: {_target_: os.system, command: touch ran}\n",
    "a search path": "hydra:\n  searchpath: [file:///etc]\n",
    "logging": "hydra:\n  job_logging: {version: 1, handlers: {h: {(): os.system, command: touch ran}}}\n",
}


@pytest.mark.parametrize("command", ["audit", pytest.param("privacy plan", marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", HYDRA)
def test_what_hydra_would_make_of_a_choice_file_is_not_made(way, command, tmp_path):
    overlay(tmp_path, data__mine="_target_: os.system\ncommand: touch ran\nnominal_examples: 1000\n")
    overlay(tmp_path, experiment__default=textwrap.dedent(DEFAULT) + HYDRA[way])
    CliRunner().invoke(app, [*command.split(), "experiment=default"])
    assert not os.path.exists("ran")


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.${x}:HOME}", "a ${oc.decode:'1'} b"])
def test_an_interpolation_that_reads_the_environment_is_refused(text, run, tmp_path):
    rewrite(run, name=text)
    assert "holds the interpolation" in fedq_says("inspect", run, status=2)
    overlay(tmp_path, experiment__default=f"# @package _global_\nname: {text!r}\n")
    assert "holds the interpolation" in fedq_says("audit", "experiment=default", "privacy=example", status=2)


def test_a_choice_file_may_refer_to_another_option(tmp_path):
    overlay(tmp_path, experiment__default="# @package _global_\nclients: 4\nrounds: ${clients}\n")
    assert "privacy=off claims nothing" in fedq_says("audit", "experiment=default", status=2)


@pytest.mark.parametrize("reader", READERS)
def test_aliases_of_aliases_are_refused(reader, run):
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    (run / "config.yaml").write_text(bomb)
    assert "holds an alias" in fedq_says(*READERS[reader](run), status=2)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
def test_a_named_pipe_in_a_run_folder_hangs_nobody(reader, name, run):
    (run / name).unlink()
    os.mkfifo(run / name)
    if (reader, name) != ("audit CONFIG", "result.json"):
        fedq_says(*READERS[reader](run), status=2)


@pytest.mark.parametrize("reader", BUILDERS)
@pytest.mark.parametrize("key", ["quant.calibration", "data.path"])
def test_a_named_pipe_in_a_config_hangs_nobody(reader, key, run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    pipe = str(tmp_path / "pipe")
    if key == "data.path":
        rewrite(run, data={"_target_": "fedq.data.csv", "path": pipe, "target": "x", "nominal_examples": 100})
    else:
        rewrite(run, quant={"activations": "dynamic", "calibration": pipe})
    assert f"{key}={pipe}: is neither a file nor a folder" in fedq_says(*READERS[reader](run), status=2)


def test_a_file_of_this_machine_that_a_config_names_is_said(run):
    rewrite(run, data={"_target_": "fedq.data.csv", "path": "/etc/hostname", "target": "x", "nominal_examples": 100})
    assert "reads data.path=/etc/hostname, as the config says" in fedq_says("inspect", run, status=2)


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "status"), [("audit RUN", 1), ("privacy statement RUN", 2)])
def test_a_ledger_that_is_a_named_pipe_hangs_nobody(reader, status, run):
    for ledger in run.glob("clients/*/ledger.sqlite"):
        ledger.unlink()
        os.mkfifo(ledger)
    assert "is not an ordinary file" in fedq_says(*READERS[reader](run), status=status)


def hot_journal(ledger, victim):
    """A journal that names `victim` as the list of journals of one transaction: SQLite undoes, and deletes the list."""
    magic, name = bytes.fromhex("d9d505f920a163d7"), str(victim).encode()
    pages = ledger.stat().st_size // 4096
    header = (magic + struct.pack(">5I", 0, 0, pages, 512, 4096)).ljust(512, b"\0")
    named = struct.pack(">I", 0x40000000 // 4096 + 1) + name + struct.pack(">2I", len(name), sum(name)) + magic
    ledger.with_name(f"{ledger.name}-journal").write_bytes(header + named)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["audit", "RUN", *QUICK], ["privacy", "statement", "RUN"], ["privacy", "ledger", "RUN"]]
)
def test_a_journal_beside_a_ledger_deletes_no_file_of_the_reader(command, run, tmp_path):
    victim = tmp_path / "thesis.txt"
    victim.write_text("years of work\n")
    for ledger in run.glob("clients/*/ledger.sqlite"):
        hot_journal(ledger, victim)
    answer = CliRunner().invoke(app, [str(run) if word == "RUN" else word for word in command])
    assert answer.exit_code in (1, 2), answer.output
    assert "names another file" in " ".join(answer.output.split())
    assert victim.read_text() == "years of work\n"


PLANTED = ("torch.py", "sklearn.py", "onnx.py", "opacus.py", "mine.py", "hydra_plugins/planted.py", "triton.py")


@pytest.mark.slow
@pytest.mark.parametrize("allow", [[], ["--allow", "mine"]])
def test_modules_beside_the_config_shadow_none(allow, run, tmp_path):
    """As a command of its own, since in this process most modules are imported already."""
    for name in PLANTED:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    for command in (["inspect", str(run)], ["privacy", "plan", "privacy=example"]):
        extra = allow if command[0] == "inspect" else []
        code = "from fedq.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *command, *extra], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


OWN = """
    from os import system
    from torch import nn

    class Net(nn.Sequential):
        def __init__(self, width=8):
            super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))
"""


@pytest.mark.slow
@pytest.mark.parametrize("allow", ["own_module", "own_module.Net"])
def test_a_module_that_is_allowed_is_imported_from_the_current_folder(allow, tmp_path):
    (tmp_path / "own_module.py").write_text(textwrap.dedent(OWN))
    words = ["privacy=example", "model._target_=own_module.Net", "rounds=1", "clients=2", "privacy.accountant=rdp"]
    told = fedq_says("audit", *words, *QUICK, "--allow", allow, status=0 if allow == "own_module" else 2)
    assert ("nothing found" in told) == (allow == "own_module")
    sys.modules.pop("own_module", None)


def test_what_an_allowed_module_imported_from_elsewhere_is_refused(tmp_path):
    (tmp_path / "own_module.py").write_text(textwrap.dedent(OWN))
    words = [
        "privacy=example",
        "data._target_=own_module.system",
        "+data.command=touch ran",
        "data.nominal_examples=100",
    ]
    told = fedq_says("audit", *words, "--allow", "own_module", status=2)
    assert "was defined in posix, which is not allowed" in told
    assert not os.path.exists("ran")
    sys.modules.pop("own_module", None)


@pytest.mark.parametrize("name", ["", "../x", "a b", "a..b", "os;x"])
def test_what_is_no_module_cannot_be_allowed(name, run):
    assert "no name of a module" in fedq_says("inspect", run, "--allow", name, status=2)


def test_the_list_of_factories_is_that_of_fedq_s_own_choices():
    from fedq.config import conf_folder

    for group, allowed in FACTORIES.items():
        named = {yaml.safe_load(path.read_text())["_target_"] for path in (conf_folder() / group).glob("*.yaml")}
        assert named == allowed
