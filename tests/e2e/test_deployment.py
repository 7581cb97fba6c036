"""Real SuperLinks and SuperNodes, real Ray, as separate processes. One smoke is fast enough for `make test`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app.constants import DEFAULT_TTL

import fedq
from fedq.config import compose
from fedq.flower import wire
from fedq.privacy import Ledger
from fedq.results import read_result
from fedq.runtime.deployment import DeploymentError, flower_command
from fedq.runtime.processes import Processes, tail
from fedq.runtime.rehearsal import CONNECTION, RehearsedDeployment, free_port, rehearsal
from fedq.runtime.rehearsal import environment as surroundings
from fedq.runtime.stage import app_here, stage
from fedq.runtime.start import built

CLI = [sys.executable, "-c", "from fedq.cli import main; main()"]
PACKAGE = str(Path(fedq.__file__).resolve().parents[1])


def environment(**more):
    return {**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in more.items()}}


def left_behind(folder):
    """Processes that were started for a rehearsal below `folder` and still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"FEDQ_TEST={folder}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes())
        except OSError:
            continue
    return found


def bits(result):
    return {name: array.tobytes() for name, array in result.arrays.items()}


@contextmanager
def standing(config, overrides, folder, *, clients=None, kind=RehearsedDeployment):
    """A SuperLink and SuperNodes that go on, as a rehearsal has them."""
    experiment = built(config)
    staged = stage(overrides, config, app=app_here(), into=folder / "submitter")
    with Processes(folder.name, surroundings(folder)) as processes:
        stand = kind(folder, processes, lambda text: None)
        stand.start_superlink()
        for number, identity in enumerate(experiment.identities if clients is None else clients):
            stand.start_supernode(number, identity, experiment)
        yield stand, staged, experiment


def test_a_rehearsal_gives_the_bits_of_a_local_run_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = ["experiment=demo", "privacy=off", "rounds=1"]
    command = [*CLI, "deploy", "rehearse", "--clients", "2", *words]
    done = subprocess.run(
        command,
        env=environment(TMPDIR=scratch, FEDQ_TEST=scratch),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(scratch.iterdir()) == []
    assert left_behind(scratch) == []
    for part in ("flower-superlink", "--enable-supernode-auth", "supernode register", "flower-supernode", "flwr run"):
        assert part in done.stdout
    (folder,) = (tmp_path / "outputs").glob("*/*")
    deployed, local = read_result(folder), fedq.run([*words, "clients=2"], root=tmp_path / "local", progress=False)
    assert bits(deployed) == bits(local)
    assert deployed.config_hash == local.config_hash
    assert deployed.accuracy == local.accuracy
    assert deployed.int8_accuracy == local.int8_accuracy


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["privacy=both"], ["privacy=client", "privacy.client.sampling=poisson"]], ids=" ".join
)
def test_a_deployment_s_server_answers_for_whole_clients(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    rehearsed = rehearsal(compose(["experiment=demo", "clients=2", "fraction=0.5", "rounds=4", *words]), root="nodes")
    assert (rehearsed.private, rehearsed.privacy_reasons) == (True, [])
    assert rehearsed.client_level["private"]
    assert len(Ledger(rehearsed.folder / "server" / "ledger.sqlite", access="read").rows()) == 4


DELTA = ["codec=sign", "codec.rotate=true", "downlink.name=sign", "downlink.rotate=true", "downlink.kind=delta"]


@pytest.mark.slow
@pytest.mark.parametrize("way", [["codec.rounding=stochastic"], DELTA], ids=["weights", "delta"])
def test_one_experiment_gives_the_same_bits_on_every_runtime(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=demo", "privacy=off", "clients=3", "rounds=4", "fraction=0.67"]
    words += [*way, "codec.error_feedback=true", "seed=5"]
    local = fedq.run(words, root="one", progress=False)
    assert [row.clients for row in local.history] == [0, 2, 2, 2, 2]
    two = fedq.run([*words, "runtime.workers=2"], root="two", progress=False)
    # In a process of its own: Ray leaves children to Python's garbage collector, which complains.
    subprocess.run([*CLI, "run", *words, "runtime=ray"], env=environment(), check=True, capture_output=True)
    ray = read_result(next((tmp_path / "outputs").glob("*/*")))
    nodes = rehearsal(compose(words), root="nodes")
    assert bits(two) == bits(local)
    assert bits(ray) == bits(local)
    assert bits(nodes) == bits(local)
    # Feedback was on: with it off, the same run gives other bits, so a residual that was lost would have shown.
    without = fedq.run([w for w in words if "error_feedback" not in w], root="without", progress=False)
    assert bits(without) != bits(local)


class Cold(RehearsedDeployment):
    """A deployment whose owners switched warm processes off."""

    def supernode(self, identity, node_config):
        return super().supernode(identity, {**node_config, "warm": False})


class Forking(RehearsedDeployment):
    """A deployment whose owners start their nodes by fedq's own program."""

    def node_program(self):
        return [*CLI, "client", "node"]


def warm_processes(stand, identity):
    """(kind of message, warm process) of each answer that a client's own log names."""
    log = stand.client(identity) / "state" / "warm" / "log.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    return re.findall(r"^\S+ run \d+: (\S+) answered by warm process (\d+)$", "\n".join(lines), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RehearsedDeployment, Forking, Cold])
def test_one_warm_process_answers_a_client_s_messages_with_the_bits_of_fresh_ones(tmp_path, monkeypatch, kind):
    from fedq.runtime.connection import Connection
    from fedq.runtime.deployment import submit

    monkeypatch.chdir(tmp_path)
    words = ["experiment=demo", "privacy=off", "clients=2", "rounds=3"]
    words += ["codec.rounding=stochastic", "codec.error_feedback=true"]
    deployed = [*words, "runtime=deployment"]
    with standing(compose(deployed), deployed, tmp_path / "place", kind=kind) as (stand, staged, _):
        followed = submit(
            staged,
            Connection(CONNECTION, stand.address),
            lambda row: None,
            environment=stand.processes.environment(stand.submitter),
        )
        result = read_result(Path(followed.folder))
        answered = [warm_processes(stand, identity) for identity in ("0", "1")]
    for messages in answered:  # the handshake came first, and started the process
        assert [message for message, _ in messages] == ([] if kind is Cold else ["train"] * 3)
        assert len({process for _, process in messages}) == (0 if kind is Cold else 1)
    assert bits(result) == bits(fedq.run(words, root=tmp_path / "local", progress=False))


@pytest.mark.slow
def test_clients_evaluate_alike_on_every_runtime_where_the_server_has_no_test_set(app):
    words = ["model=linear", "data._target_=mine.no_test", "clients=3", "rounds=2", "quant=int8", "codec=int8"]
    words += ["strategy.weighting=equal"]
    local = fedq.run(words, root="local", progress=False)
    assert local.accuracy_source == "clients"
    nodes = rehearsal(compose(words), root="nodes")
    assert bits(nodes) == bits(local)
    assert nodes.accuracy == local.accuracy


@pytest.mark.slow
def test_under_dp_each_ledger_is_on_its_client_s_disk_and_adds_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=demo", "clients=3", "rounds=3", "fraction=0.67"]
    result = rehearsal(compose(words), root="out")
    assert result.private, result.privacy_reasons
    assert result.epsilon_of == "ledgers"  # which the rehearsal brought together; its server saw none
    assert set(result.reply_fields) <= wire.PUBLIC_FIELDS
    plan = built(compose(words)).plan
    taken = {str(i): [row.round for row in result.history if str(i) in row.accepted] for i in range(3)}
    assert sorted(len(rounds) for rounds in taken.values()) == [2, 2, 2]
    for identity, rounds in taken.items():
        ledger = Ledger(result.folder / "clients" / identity / "ledger.sqlite", access="read")
        ledger.verify()
        assert [row.spend.round for row in ledger.rows()] == rounds
        assert [row.spend.steps for row in ledger.rows()] == [plan.steps] * 2
        assert ledger.epsilon(plan.delta, accountant=plan.accountant) <= 8
    assert result.epsilon <= 8


@pytest.fixture
def app(workplace):
    """An app directory whose one module is the tests' own."""
    (workplace / "pyproject.toml").write_text(
        '[project]\nname = "app"\nversion = "1.0.0"\nlicense = "MIT"\ndescription = "x"\n'
        '[tool.flwr.app]\npublisher = "tests"\nfab-include = ["mine.py"]\n'
        '[tool.flwr.app.components]\nserverapp = "fedq.app:server"\nclientapp = "fedq.app:client"\n'
        '[tool.flwr.app.config]\noverrides = "[]"\n'
    )
    return workplace


@pytest.mark.slow
def test_what_crosses_the_link_is_packets_and_codes_though_a_client_s_code_raises(app, tmp_path_factory):
    # Client 1 alone holds the pixel over which the model raises, with a path and a value in the text.
    from tap import Tap, messages

    words = [
        "model._target_=mine.Fragile",
        "data._target_=mine.marked",
        "data.clients=2",
        "clients=2",
        "rounds=2",
        "codec=int8",
    ]
    words += ["privacy=example", "privacy.target_epsilon=8", "privacy.nominal_examples=120", "privacy.sample_rate=1"]
    config = compose(words)
    place = tmp_path_factory.mktemp("place")
    staged = stage(words, config, app=app_here(), into=place / "submitter")
    experiment = built(config)
    port = free_port()
    tap = Tap(port)
    home = place / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.plain]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    with Processes(place.name, surroundings(place)) as processes:
        command = [flower_command("flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--disable-runtime-dependency-installation"]
        processes.start(command, place / "superlink.log", {"FLWR_HOME": str(place / "server"), "FEDQ_HOME": str(place)})
        stand = RehearsedDeployment(place, processes, lambda text: None)
        stand._await(port)
        for number, identity in enumerate(experiment.identities):
            folder = place / identity
            folder.mkdir()
            from fedq.data import write_shard

            shard = folder / "x.shard.npz"
            write_shard(shard, experiment.dataset.train[experiment.shards[identity]], experiment.dataset)
            pairs = f'partition-id={number} data-path="{shard}" state-dir="{folder / "state"}"'
            command = [flower_command("flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{tap.port}"]
            command += ["--node-config", pairs, "--host", "127.0.0.1", "--port", str(free_port())]
            processes.start(command, folder / "supernode.log", {"FLWR_HOME": str(folder / "flwr")})
        from fedq.runtime.connection import Connection
        from fedq.runtime.deployment import submit

        rows = []
        told = submit(
            staged,
            Connection("plain", f"127.0.0.1:{port}"),
            rows.append,
            environment=processes.environment({"FLWR_HOME": str(home)}),
        )
        logs = {i: (place / i / "state" / "runs" / told.run / "log.txt").read_text() for i in experiment.identities}
    tap.close()

    # The client's own operator reads what happened; the server read a code.
    assert "/home/alice/scan-4711.png: value 9" in logs["1"]
    assert "scan-4711" not in logs["0"]
    assert [row.rejected for row in rows[1:]] == [[{"client": "1", "reason": "declined"}]] * 2
    assert told.result["private"] is False

    crossed = messages(tap.sent)
    assert len(crossed) == 2 * 3  # a hello and two rounds of each client
    for message in crossed:
        assert message.has_content()
        assert wire.fields_of(message.content) <= wire.PUBLIC_FIELDS
        # Nor does Flower's envelope tell how long a client took: it lives exactly as long as a request does.
        assert message.metadata.ttl == DEFAULT_TTL
        for record in message.content.values():
            for value in record.values():
                assert not isinstance(value, str) or len(value) < 20
    raw = b"".join(bytes(kept) for kept in tap.sent)
    assert b"fedq.packets" in raw  # the tap does see
    for secret in (b"scan-4711", b"alice", b"RuntimeError", b"Traceback", str(place).encode()):
        assert secret not in raw
    assert b"scan-4711" not in (place / "superlink.log").read_bytes()


@pytest.mark.slow
def test_a_wrong_certificate_an_unregistered_key_and_plain_text_are_refused_while_the_others_go_on(
    tmp_path, monkeypatch
):
    from fedq.runtime.credentials import write_certificates, write_node_key
    from fedq.runtime.deployment import submit

    monkeypatch.chdir(tmp_path)
    words = ["experiment=demo", "privacy=off", "clients=2", "rounds=2", "runtime=deployment"]
    config = compose(words)
    with standing(config, words, tmp_path / "place") as (stand, staged, _):
        bad = {}
        for number, name in enumerate(("wrong-ca", "unregistered", "plain"), start=2):
            home = stand.client(name)
            home.mkdir(parents=True)
            write_node_key(home / "node")
            certificates = stand.server
            if name == "wrong-ca":
                certificates = home / "other"
                certificates.mkdir()
                write_certificates(certificates)
                (home / "ca.crt").write_bytes((certificates / "ca.crt").read_bytes())
                stand.register(name)
            command = [flower_command("flower-supernode"), "--superlink", stand.address]
            command += ["--insecure"] if name == "plain" else ["--root-certificates", str(certificates / "ca.crt")]
            command += [] if name == "plain" else ["--auth-supernode-private-key", str(home / "node")]
            # It claims to be a client that the run expects.
            command += [
                "--node-config",
                f"partition-id={number - 2}",
                "--host",
                "127.0.0.1",
                "--port",
                str(free_port()),
            ]
            bad[name] = stand.processes.start(command, home / "supernode.log", {"FLWR_HOME": str(home / "flwr")})
        rows = []
        environment = stand.processes.environment(stand.submitter)
        from fedq.runtime.connection import Connection

        told = submit(staged, Connection(CONNECTION, stand.address), rows.append, environment=environment)
        listed = subprocess.run(
            [flower_command("flwr"), "supernode", "list", CONNECTION, "--format", "json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        logs = {name: (stand.client(name) / "supernode.log").read_text() for name in bad}
    assert told.result["status"] == "finished"
    assert [row.clients for row in rows] == [0, 2, 2]
    assert [row.lost for row in rows] == [0, 0, 0]
    online = [node for node in json.loads(listed.stdout)["nodes"] if node["status"] == "online"]
    assert len(online) == 2
    for name, log in logs.items():
        assert "Receiving" not in log, (name, log)
    assert "CERTIFICATE_VERIFY_FAILED" in logs["wrong-ca"].upper()


@pytest.mark.slow
def test_a_client_that_never_comes_is_named_and_ends_the_run(tmp_path, monkeypatch):
    from fedq.runtime.connection import Connection
    from fedq.runtime.deployment import submit

    monkeypatch.chdir(tmp_path)
    words = ["experiment=demo", "privacy=off", "names=[north,south]", "clients=2", "rounds=1", "runtime=deployment"]
    words += ["runtime.wait=25"]
    config = compose(words)
    with standing(config, words, tmp_path / "place", clients=["north"]) as (stand, staged, _):
        environment = stand.processes.environment(stand.submitter)
        with pytest.raises(DeploymentError, match=r"client south did not come within runtime.wait=25 s; 1 of 2 answer"):
            submit(staged, Connection(CONNECTION, stand.address), lambda row: None, environment=environment)


@pytest.mark.slow
def test_fedq_run_on_a_named_connection_follows_the_run_and_says_where_its_files_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=demo", "privacy=off", "clients=2", "rounds=2", "runtime=deployment"]
    config = compose(words)
    with standing(config, words, tmp_path / "place") as (stand, _, _):
        command = [*CLI, "run", *words, f"runtime.connection={CONNECTION}"]
        done = subprocess.run(
            command, env=environment(**stand.submitter), capture_output=True, text=True, timeout=240, check=False
        )
        (folder,) = (stand.server / "outputs").glob("*/*")
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(folder) in "".join(done.stdout.split("\n")).replace(" ", "")
        assert (folder / "model.onnx").exists()
    assert not (tmp_path / "outputs").exists()  # nothing of the run lies with whoever only asked for it


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_rehearsal_leaves_no_process_and_no_file(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [*CLI, "deploy", "rehearse", "--clients", "2", "experiment=demo", "privacy=off"]
    with subprocess.Popen(
        command,
        env=environment(TMPDIR=scratch, FEDQ_TEST=scratch),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
    ) as process:
        for line in process.stdout:
            if line.startswith("[submitter]"):
                break
        time.sleep(12)  # in the middle of hellos or of a round
        assert left_behind(scratch)
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 130, rest
    assert list(scratch.iterdir()) == []
    assert left_behind(scratch) == []


@pytest.mark.slow
def test_a_run_that_fails_says_why_with_status_1_and_leaves_nothing(app, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    command = [*CLI, "deploy", "rehearse", "--clients", "2", "model._target_=mine.Broken", "rounds=1"]
    (app / "mine.py").write_text((app / "mine.py").read_text() + BROKEN)
    done = subprocess.run(
        command,
        env=environment(TMPDIR=scratch, FEDQ_TEST=scratch),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no round succeeded" in done.stderr
    assert list(scratch.iterdir()) == []
    assert left_behind(scratch) == []


BROKEN = """

class Broken(Net):
    def forward(self, x):
        if self.training and x.requires_grad is False and len(x) > 2:
            raise RuntimeError("broken")
        return super().forward(x)
"""


@pytest.mark.slow
def test_flwr_run_works_in_a_new_app(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run([*CLI, "new", "app-one"], env=environment(), check=True, capture_output=True)
    home = environment(FLWR_HOME=tmp_path / "flwr", FEDQ_HOME=tmp_path / "fedq", FLWR_TELEMETRY_ENABLED="0")
    home |= {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()), "FLWR_LOCAL_CONTROL_API_PORT": str(free_port())}
    home["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{home['PATH']}"
    try:
        done = subprocess.run(
            [flower_command("flwr"), "run", ".", "--stream"],
            cwd=tmp_path / "app-one",
            env=home,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        folders = list((tmp_path / "fedq" / "outputs").glob("*/*"))
        assert len(folders) == 1, done.stdout + tail(tmp_path / "flwr" / "local-superlink" / "superlink.log")
        result = read_result(folders[0])
        assert result.rounds == 20
        assert result.int8_accuracy > 0.9
        assert (folders[0] / "clients" / "1" / "log.txt").exists()
    finally:
        stop_local_superlink(tmp_path / "flwr")


def stop_local_superlink(home):
    """Flower leaves its local SuperLink running, for the next `flwr run`."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(home).encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGTERM)
        except OSError:
            continue
