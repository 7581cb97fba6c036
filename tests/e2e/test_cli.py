"""The command as a user types it: real processes, exit statuses, what is on the screen and what is left on the disk."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedq

SOURCE = Path(fedq.__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from fedq.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
SMALL = ["model._target_=mine.Net", "data._target_=mine.digits", "clients=4", "rounds=2"]


def fedq_run(*arguments, timeout=60):
    return subprocess.run(
        [*COMMAND, "run", *arguments], capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False
    )


def refused(*overrides):
    """stderr of a run that must be refused: in this process, through the same command."""
    from typer.testing import CliRunner

    from fedq.cli import app

    answer = CliRunner().invoke(app, ["run", *overrides])
    assert answer.exit_code == 2, answer.output
    assert not Path("outputs").exists(), "a refused run leaves no folder"
    assert "Traceback" not in answer.output
    return answer.stderr


def test_a_run_ends_with_a_table_a_person_can_read(workplace):
    done = fedq_run(*SMALL, "quant=int8", "codec=int8", "name=first")
    assert done.returncode == 0, done.stderr
    for words in ("accuracy", "int8", "QGemm", "no privacy claimed", "model.onnx", "try next", "fedq run", "first"):
        assert words in done.stdout
    assert done.stderr == "", "no terminal, no progress; and no warnings of libraries"


def test_the_cost_of_a_part_is_told_once_the_run_without_it_is_known(workplace):
    from fedq.console import known_costs

    without = fedq.run([*SMALL, "rounds=4"], progress=False)
    result = fedq.run([*SMALL, "rounds=4", "codec=int8"], progress=False)
    (cost,) = known_costs(result, [Path("outputs")])
    assert cost.part == "compressed packets"
    assert (cost.accuracy_without, cost.accuracy_with) == (without.accuracy, result.accuracy)
    assert known_costs(fedq.run([*SMALL, "codec=int8", "seed=9"], progress=False), [Path("outputs")]) == []


def test_the_forecast_is_what_the_run_then_sends(workplace):
    from fedq.runtime import check, forecast

    for way in (["codec=int8", "fraction=0.5"], ["privacy=example", "privacy.nominal_examples=60"]):
        told = forecast(check([*SMALL, *way, "rounds=4"]))
        real = fedq.run([*SMALL, *way, "rounds=4"], progress=False)
        # The loss is 8 bytes wherever it is told, so only the number of clients that answer could differ.
        assert (told.bytes_up, told.bytes_down) == (real.bytes_up, real.bytes_down)
        assert (told.float32_bytes_up, told.float32_bytes_down) == (real.float32_bytes_up, real.float32_bytes_down)
        assert told.epsilon == real.epsilon


@pytest.mark.slow
def test_a_forecast_trains_nothing_and_makes_no_folder(workplace):
    done = fedq_run(*SMALL, "--dry-run")
    assert done.returncode == 0
    assert "nothing was trained" in done.stdout
    assert not Path("outputs").exists()


def more(overrides, words):
    """In make test-slow: a command takes a second. Each stage that refuses has lines below that are not slow."""
    return pytest.param(overrides, words, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["nosuch.key=1"], ["nosuch.key"]),
        more(["+foo=1", "++train.foo=2"], ["2 problems", "foo=1", "train.foo=2"]),
        more(["=3"], ["no such key"]),
        more(["privacy=[off,example]"], ["privacy", "one choice"]),
        more(["fraction=nan"], ["fraction=nan"]),
        more(["experiment=demo", "clients=0"], ["clients=0"]),
        more(["data=[1]"], ["data"]),
        more(["experiment=demo", "data.nominal_examples=abc"], ["data.nominal_examples=abc"]),
        more(["experiment=demo", "privacy.target_epsilon=1e-9"], ["privacy.target_epsilon"]),
        more(["experiment=demo", "privacy.target_delta=0.05"], ["privacy.target_delta", "0.001"]),
        more(["privacy.clip_norm=3"], ["privacy.clip_norm", "privacy=example"]),
        more(["quant.weight_range=127"], ["quant.weight_range", "quant=int8"]),
        (["quant=int8", "quant.skip=[nosuch]"], ["nosuch", "hidden1"]),
        more(["strategy.max_weight=0"], ["strategy.max_weight", "(0, 1.04858e+06]"]),
        more(["data._target_=sys.exit"], ["data"]),
        (["model.hidden=64"], ["model.hidden", "[64]"]),
        more(["privacy=example", "privacy.ledger=mine.py/ledgers"], ["privacy.ledger", "cannot be written"]),
        (["fractoin=1"], ["fractoin", "Did you mean fraction?"]),
        more(["privacy=example", "quant=int8", "quant.activations=observed"], ["observed", "fixed or learned"]),
        (["privacy=example", "privacy.target_epsilon=-1"], ["privacy.target_epsilon=-1", "privacy.target_epsilon=8"]),
        (["data=fashion_mnist", "data.path=/nonexistent"], ["/nonexistent", "dataset-fashion-mnist"]),
        more(["model._target_=no.such.Thing"], ["no.such.Thing", "cannot be imported"]),
        (["model._target_=mine.Nett"], ["mine.Nett", "cannot be imported"]),
        more(["partition=nosuch"], ["nosuch", "dirichlet"]),
        more(["fraction=0"], ["fraction=0", "fraction=1"]),
        (["clients=99999"], ["clients=99999", "1258"]),
        more(["model._target_=bad.Pool", "quant=int8"], ["no layer to quantize", "quant=off"]),
        (["model._target_=bad.Norm", "privacy=example"], ["BatchNorm", "GroupNorm"]),
        (["model._target_=bad.NaN"], ["NaN"]),
        (["data._target_=bad.nan"], ["nan", "finite", "example 7"]),
        (["train.optimizer=SDG"], ["SDG", "SGD"]),
        more(["model.hiden=[3]"], ["model.hiden", "model.hidden"]),
        (["fraction=0", "clients=99999", "train.optimizer=SDG"], ["3 problems", "fraction", "99999", "SDG"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_bad_input_is_refused_with_key_value_rule_and_mend(workplace, overrides, words):
    (workplace / "bad.py").write_text(
        "import torch, numpy\nfrom torch import nn\n"
        "def Norm():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))\n"
        "def Pool():\n    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))\n"
        "def NaN():\n    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "    nn.init.constant_(net[1].bias, float('nan'))\n    return net\n"
        "def nan():\n    x = numpy.zeros((50, 4)); x[7, 2] = float('nan')\n    return (x, numpy.arange(50) % 2)\n"
    )
    told = refused(*overrides)
    for word in words:
        assert word in told


def test_a_refusal_is_quick_and_its_status_is_2(workplace):
    begun = time.monotonic()
    done = fedq_run("nosuch.key=1", "rounds=abc")
    assert done.returncode == 2
    assert "2 problems" in done.stderr
    assert time.monotonic() - begun < 10


def test_help_of_run_lists_groups_choices_and_keys_with_their_meaning(workplace):
    page = fedq_run("--help").stdout
    codecs = "codec: float16, float32, int2, int4, int8, randk, sign, topk"
    for words in (
        codecs,
        "downlink.kind=weights ",
        "privacy: both, client, example, off",
        "fraction=1.0 ",
        "share of the clients",
    ):
        assert words in page


def test_the_composed_config_can_be_printed(workplace):
    page = fedq_run("--cfg", "job", "experiment=demo").stdout
    assert "rounds: 100" in page
    assert "unit: example" in page


def test_help_answers_within_half_a_second():
    def seconds():
        begun = time.monotonic()
        page = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, env=ENVIRONMENT, check=True).stdout
        assert "Run one experiment" in page
        return time.monotonic() - begun

    assert min(seconds() for _ in range(5)) < 0.5


def test_version():
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout == f"fedq {fedq.__version__}\n"


@pytest.mark.slow
def test_a_sweep_runs_every_combination(workplace):
    done = fedq_run("-m", *SMALL, "rounds=1", "seed=1,2", "codec=float32,int8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:7] == ["run", "score", "int8", "epsilon", "up", "down", "folder"]
    results = [json.loads(p.read_text()) for p in Path("outputs").glob("*/*/result.json")]
    assert {(r["seed"], r["config"]["codec"]["name"]) for r in results} == {
        (1, "float32"), (1, "int8"), (2, "float32"), (2, "int8")
    }  # fmt: skip


def test_a_sweep_with_one_bad_value_starts_nothing(workplace):
    done = fedq_run("-m", *SMALL, "fraction=1,0")
    assert done.returncode == 2
    assert "fraction=0" in done.stderr
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_ends_with_130(workplace):
    arguments = [*COMMAND, "run", *SMALL[:-1], "rounds=100000", "runtime.workers=2"]
    run = subprocess.Popen(
        arguments,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
    )
    try:
        rows = wait_for_rows(workplace, 3)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does it: the workers get it too
        out, err = run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130, err.decode()
    assert b"Traceback" not in err
    folder = rows.parent
    told = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert told["status"] == "interrupted"
    assert told["rounds"] == len(lines) - 1 >= 3
    assert told["accuracy"] is not None
    assert (folder / "model.safetensors").exists()
    assert b"after round" in out
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)  # no worker is left


def wait_for_rows(folder, count):
    for _ in range(600):
        for rows in folder.glob("outputs/*/*/rounds.jsonl"):
            if rows.read_text().count("\n") > count:
                return rows
        time.sleep(0.1)
    raise TimeoutError("the run did not get under way")


@pytest.mark.slow
def test_a_terminal_sees_rows_as_rounds_end(workplace):
    outer, inner = pty.openpty()
    run = subprocess.Popen(
        [*COMMAND, "run", *SMALL],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**ENVIRONMENT, "TERM": "xterm-256color"},
    )
    os.close(inner)
    shown = b""
    while True:
        try:
            chunk = os.read(outer, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    assert run.wait(60) == 0
    for words in (b"round", b"accuracy", b"lost", b"try next"):
        assert words in shown


@pytest.mark.slow
def test_a_script_without_a_main_guard_may_use_workers(workplace):
    script = workplace / "script.py"
    script.write_text(
        f"import fedq\nr = fedq.run({[*SMALL, 'runtime.workers=2']!r})\nprint(type(r).__name__, r.rounds)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=90, env=ENVIRONMENT, check=False
    )
    assert done.stdout.strip() == "Result 2", done.stderr
