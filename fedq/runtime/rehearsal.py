"""Rehearse a deployment on one machine: a real SuperLink and SuperNodes, with TLS and node keys.

Depends on Flower's programs. Every command is printed: each is what one organisation would run on its own machine
(docs/deploy.md). All files are in a temporary directory, which is removed with every process in all cases.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedq.artifacts.client_level import complete_rows, with_client_level
from fedq.artifacts.publication import write_publication
from fedq.artifacts.run_artifacts import ClientFiles, evidence_of
from fedq.config import Config, ConfigError, Problem, problems
from fedq.core.durable import append_to_private, make_private_folder
from fedq.data import write_shard
from fedq.experiment import Experiment
from fedq.experiment.ledgers import LEDGER
from fedq.results import Result, new_run_folder, read_result
from fedq.runtime.connection import Connection
from fedq.runtime.credentials import write_certificates, write_node_key
from fedq.runtime.deployment import DeploymentError, Followed, flower_command, result_of, submit
from fedq.runtime.observers import Observer, Observers, RunStart
from fedq.runtime.processes import Processes, tail
from fedq.runtime.stage import Staged, app_here, stage
from fedq.runtime.start import OUTPUTS, built
from fedq.server.node_names import FILE as NODE_NAMES

CONNECTION = "rehearsal"
_START_UP = 60.0  # seconds until a SuperLink or SuperNode must listen
_MOST = 64  # SuperNodes: each is a process of some 150 MB, and a second one while it trains


def rehearsal(
    config: Config,
    overrides: Sequence[str] | None = None,
    *,
    say: Callable[[str], object] = lambda text: None,
    root: str | Path = OUTPUTS,
    observers: Sequence[Observer] = (),
) -> Result:
    """Deploy the experiment here and return its result; the run folder is copied to `root`.

    Raises `ConfigError` before anything is started, and `DeploymentError` if the run fails.
    """
    config = replace(config, runtime=replace(config.runtime, name="deployment"))
    words = [o for o in (config.overrides if overrides is None else overrides) if not o.startswith("runtime=")]
    words = [*words, "runtime=deployment"]
    if config.data.get("path") is not None:  # absolute, since the server starts in another folder
        config = replace(config, data={**config.data, "path": str(Path(str(config.data["path"])).absolute())})
        words = [*(o for o in words if not o.startswith("data.path=")), f"data.path={config.data['path']}"]
    found = problems(replace(config, overrides=words))
    if config.clients > _MOST:
        found.append(Problem("clients", config.clients, f"at most {_MOST} SuperNodes are started here", "Use fewer"))
    if found:
        raise ConfigError(found)
    # Built here as a local run, which has none of the options of runtime=deployment.
    own = [o for o in config.overrides if not o.startswith("runtime.")]
    experiment = built(replace(config, runtime=replace(config.runtime, name="local"), overrides=own))
    with tempfile.TemporaryDirectory(prefix="fedq-rehearsal-") as scratch:
        place = Path(scratch)
        staged = stage(words, config, app=app_here(), into=place / "submitter")
        watchers = Observers(observers)
        with Processes(place.name, environment(place)) as processes:
            deployment = RehearsedDeployment(place, processes, say)
            deployment.start_superlink()
            for number, identity in enumerate(experiment.identities):
                deployment.start_supernode(number, identity, experiment)
            followed = deployment.run(config, staged, watchers)
        return _collected(experiment, place, followed, root)


@dataclass
class RehearsedDeployment:
    """The parts of the deployment: the server's folder, each client's, the submitter's. `say` prints commands."""

    place: Path
    processes: Processes
    say: Callable[[str], object]
    address: str = ""
    _ports: list[int] = field(default_factory=list)

    @property
    def server(self) -> Path:
        return self.place / "server"

    def client(self, identity: str) -> Path:
        return self.place / "clients" / identity

    def start_superlink(self) -> None:
        """The server's organisation: certificates, and one process that listens on one port."""
        self.server.mkdir()
        write_certificates(self.server)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._tell("server", "certificates: ca.crt for everybody, server.pem and server.key for the SuperLink only")
        command = [flower_command("flower-superlink"), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--ssl-ca-certfile", str(self.server / "ca.crt")]
        command += ["--ssl-certfile", str(self.server / "server.pem")]
        command += ["--ssl-keyfile", str(self.server / "server.key")]
        command += ["--enable-supernode-auth", "--database", str(self.server / "state.db")]
        command += ["--disable-runtime-dependency-installation"]
        self._show("server", command, {"FEDQ_HOME": str(self.server)})
        extra = {"FLWR_HOME": str(self.server / "flwr"), "FEDQ_HOME": str(self.server)}
        self.processes.start(command, self.server / "superlink.log", extra)
        home = self.place / "submitter" / "flwr"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{self.address}"\n'
            f'root-certificates = "{self.server / "ca.crt"}"\n',
            encoding="utf-8",
        )
        self._await(port)

    def start_supernode(self, number: int, identity: str, experiment: Experiment) -> None:
        """A client's organisation: a key that the server registers, its data, its state, and one process."""
        home = self.client(identity)
        (home / "data").mkdir(parents=True)
        (home / "state").mkdir()
        shutil.copy(self.server / "ca.crt", home / "ca.crt")
        write_node_key(home / "node")
        with append_to_private(self.server / NODE_NAMES) as names:
            names.write(f'"{identity}" = "{(home / "node.pub").read_text(encoding="utf-8").strip()}"\n')
        shard = home / "data" / "examples.shard.npz"
        write_shard(shard, experiment.dataset.train[experiment.shards[identity]], experiment.dataset)
        self.register(identity)
        pairs = {"name": identity} if experiment.config.names else {"partition-id": number}
        self.supernode(identity, {**pairs, "data-path": str(shard), "state-dir": str(home / "state")})

    def register(self, identity: str) -> None:
        """The server's operator registers a node by its public key."""
        key = self.client(identity) / "node.pub"
        command = [flower_command("flwr"), "supernode", "register", str(key), CONNECTION]
        self._show("server", command, {})
        done = subprocess.run(
            command, env=self.processes.environment(self.submitter), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DeploymentError(f"{shlex.join(command)}: {done.stdout}{done.stderr}")

    def supernode(self, identity: str, node_config: Mapping[str, str | int]) -> subprocess.Popen[bytes]:
        home = self.client(identity)
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in node_config.items())
        command = [*self.node_program(), "--superlink", self.address]
        command += ["--root-certificates", str(home / "ca.crt"), "--auth-supernode-private-key", str(home / "node")]
        port = free_port()
        command += ["--node-config", pairs, "--host", "127.0.0.1", "--port", str(port)]
        self._show(f"client {identity}", command, {})
        extra = {"FLWR_HOME": str(home / "flwr"), "FEDQ_HOME": str(home)}
        self._ports.append(port)
        return self.processes.start(command, home / "supernode.log", extra)

    def node_program(self) -> list[str]:
        """The program of a client's organisation, which takes the arguments of `flower-supernode`."""
        return [flower_command("flower-supernode")]

    @property
    def submitter(self) -> dict[str, str]:
        return {"FLWR_HOME": str(self.place / "submitter" / "flwr")}

    def run(self, config: Config, staged: Staged, watchers: Observers) -> Followed:
        """The submitter starts the run with one command and follows the rounds."""
        for port in self._ports:
            self._await(port)
        connection = Connection(CONNECTION, self.address)
        environment = self.processes.environment(self.submitter)
        with watchers.watching(RunStart.of(config, None, where=connection.address)) as end:
            try:
                followed = submit(
                    staged,
                    connection,
                    watchers.on_round,
                    note=watchers.on_note,
                    environment=environment,
                    said=lambda command: self._show("submitter", command, {}),
                )
                end(result_of(followed))
                return followed
            except DeploymentError as error:
                logs = [self.server / "superlink.log", *sorted(self.place.glob("clients/*/supernode.log"))]
                words = "\n".join(f"--- {log.relative_to(self.place)}\n{tail(log)}" for log in logs[:4])
                raise DeploymentError(f"{error}\n{words}") from None

    def _await(self, port: int) -> None:
        end = time.monotonic() + _START_UP
        while time.monotonic() < end:
            self.processes.check()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise DeploymentError(f"no process listens on port {port} after {_START_UP:.0f} s")

    def _show(self, who: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        words = [Path(command[0]).name, *command[1:]]
        settings = "".join(f"{key}={shlex.quote(value)} " for key, value in environment.items())
        self._tell(who, f"{settings}{shlex.join(words)}".replace(str(self.place), "."))

    def _tell(self, who: str, text: str) -> None:
        self.say(f"[{who}] {text}")


def free_port() -> int:
    """A port on which no process listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(place: Path) -> dict[str, str]:
    """The environment of every process: the same fedq, one thread, a scratch folder, no telemetry."""
    scratch = place / "tmp"
    scratch.mkdir(parents=True)
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    fixed = {"PYTHONPATH": paths, "PATH": programs, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return {**os.environ, **fixed, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _collected(experiment: Experiment, place: Path, followed: Followed, root: str | Path) -> Result:
    """Copy the server's run folder and the clients' own files; only a rehearsal may bring these together."""
    folder = new_run_folder(root, experiment.config.name)
    shutil.copytree(followed.folder, folder, dirs_exist_ok=True)
    for identity in experiment.identities:
        state, home = place / "clients" / identity / "state", folder / "clients" / identity
        if (state / "runs" / followed.run).is_dir():
            make_private_folder(home)
            shutil.copytree(
                state / "runs" / followed.run, home, ignore=shutil.ignore_patterns(".lock"), dirs_exist_ok=True
            )
        for account in sorted(state.glob(f"{LEDGER}*")):  # and its tip
            if account.suffix != ".lock":
                make_private_folder(home)
                shutil.copy(account, home / account.name)
    result = read_result(folder)
    if experiment.plan is not None:
        files = ClientFiles(folder / "clients", followed.run)
        rows = complete_rows(folder, result.history)
        spent, private, reasons = evidence_of(experiment, files, rows, result.reply_fields)
        said = {"epsilon": spent, "epsilon_of": "ledgers", "private": private, "privacy_reasons": reasons}
        result = replace(result, **(with_client_level(said, result.client_level) if result.client_level else said))
        result.write(folder)
    write_publication(folder, result)
    return result
