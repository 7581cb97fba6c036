"""The five lines of docs/existing-app.md, on an app that knows nothing of fedq but them."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from five_lines import DOCUMENT, PLAIN, diff, loaded, quantized

from fedq.flower import private as flower
from fedq.flower.grid import InProcessGrid

SOURCE = Path(__file__).resolve().parents[2]
CLIENTS = 4


class MeasuringGrid(InProcessGrid):
    """The grid of this process; keeps the serialized length of every message by its task and direction."""

    def __init__(self, app, run_config):
        super().__init__(app, CLIENTS)
        for context in self.contexts.values():
            context.run_config.update(run_config)
        self.sizes = defaultdict(list)

    def stream(self, messages):
        for message in messages:
            task = message.metadata.message_type
            self.sizes[task, "request"].append(len(flower.serialized(message)))
            (reply,) = super().stream([message])
            self.sizes[task, "reply"].append(len(flower.serialized(reply)))
            yield reply


class Ran:
    """The app, run for some rounds in this process."""

    def __init__(self, folder, model_path, *, rounds):
        app = loaded(folder)
        config = {"num-server-rounds": rounds, "fraction-evaluate": 0.5, "local-epochs": 1, "learning-rate": 0.05}
        config |= {"batch-size": 32, "model-path": str(model_path)}
        grid = MeasuringGrid(app.client, config)
        context = flower.new_context(0, {})
        context.run_config.update(config)
        random.seed(5)
        app.server(grid, context)
        self.state = torch.load(model_path)
        self.sizes = {key: max(sizes) for key, sizes in grid.sizes.items()}
        self._task = app.task

    @property
    def accuracy(self):
        model = self._task.Net()
        model.load_state_dict(self.state)
        right = seen = 0
        for part in range(CLIENTS):
            _, test = self._task.load_data(part, CLIENTS, 32)
            right += self._task.test(model, test, "cpu")[1] * len(test.dataset)
            seen += len(test.dataset)
        return right / seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Ran(PLAIN, tmp_path_factory.mktemp("plain") / "model.pt", rounds=5)


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    return Ran(quantized(folder), folder / "model.pt", rounds=5)


def test_the_diff_is_five_lines():
    assert len(re.findall(r"^\+(?!\+\+ )", diff(), re.MULTILINE)) == 5


def test_the_plain_app_knows_nothing_of_fedq():
    assert not [path for path in PLAIN.rglob("*.py") if "fedq" in path.read_text(encoding="utf-8")]


def test_with_the_float32_codec_the_app_trains_the_model_of_flowers_fedavg(tmp_path):
    app = quantized(tmp_path)
    server = app / "quickstart" / "server_app.py"
    server.write_text(server.read_text().replace("QuantizedFedAvg(", 'QuantizedFedAvg(codec="float32", '))
    ours, theirs = Ran(app, tmp_path / "a.pt", rounds=1).state, Ran(PLAIN, tmp_path / "b.pt", rounds=1).state
    floats = [name for name, tensor in theirs.items() if "num_batches" not in name]
    assert len(floats) == 16
    for name in floats:
        assert np.abs(ours[name].numpy() - theirs[name].numpy()).max() < 1e-6


@pytest.mark.slow
def test_with_int8_the_app_learns_as_well(plain, int8):
    """360 test examples: 2 points are 7 of them."""
    assert plain.accuracy > 0.9
    assert int8.accuracy > plain.accuracy - 0.02


def test_batch_norm_keeps_its_statistics_and_its_counter_stays(int8):
    assert (int8.state["bn1.running_mean"].abs() > 0).any()
    assert (int8.state["bn2.running_var"] > 0).all()
    assert int8.state["bn1.num_batches_tracked"].dtype == torch.int64
    assert int8.state["bn1.num_batches_tracked"].item() == 0


@pytest.mark.parametrize("message", [("train", "request"), ("train", "reply"), ("evaluate", "request")])
def test_a_message_with_a_model_has_at_most_27_percent_of_its_bytes(plain, int8, message):
    assert int8.sizes[message] <= 0.27 * plain.sizes[message]


def test_the_table_of_the_document_is_what_is_measured(plain, int8):
    text = DOCUMENT.read_text(encoding="utf-8")
    for message in (("train", "request"), ("train", "reply"), ("evaluate", "request")):
        before, after = plain.sizes[message], int8.sizes[message]
        row = f"| {' '.join(message)} | {before / 1000:.0f} kB | {after / 1000:.0f} kB | {after / before:.1%} |"
        assert row in text, f"docs/existing-app.md: should have {row}"


# --- flwr run -------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes_of(home):
    """Ids of running processes whose environment names this FLWR_HOME; empty where there is no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FLWR_HOME={home}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has just ended, or is another user's
    return found


@pytest.fixture
def superlink(tmp_path):
    """Flower's local SuperLink, as `flwr run` would start it, on ports of its own; the environment to reach it."""
    port, control, home = free_port(), free_port(), tmp_path / "flwr home"
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(SOURCE),
        "OMP_NUM_THREADS": "1",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
    }
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--control-api-address", f"127.0.0.1:{control}"]
    with (tmp_path / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield environment
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        end = time.monotonic() + 20
        while (left := processes_of(home)) and time.monotonic() < end:
            time.sleep(0.2)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, "the run left processes behind"


def wait_for(url):
    for _ in range(150):
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(url)


@pytest.mark.slow
def test_flwr_run_trains_the_app_with_the_five_lines(superlink, tmp_path):
    pytest.importorskip("ray")
    model = tmp_path / "model.pt"
    command = ["flwr", "run", str(quantized(tmp_path)), "local", "--stream"]
    command += ["--run-config", f"model-path='{model}' num-server-rounds=2"]
    command += ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]
    done = subprocess.run(command, env=superlink, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Starting QuantizedFedAvg strategy" in done.stdout, done.stdout
    assert "dropped" not in done.stdout
    assert torch.load(model)["bn1.running_mean"].abs().max() > 0
