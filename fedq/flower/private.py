"""The only file with Flower's private names (flwr is pinned to a minor version). Imports nothing of fedq."""

import importlib
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "LINK_ERRORS",
    "EngineEndedError",
    "Run",
    "bundle",
    "deserialized",
    "deserialized_context",
    "enter",
    "identity",
    "is_in_memory",
    "is_remote",
    "new_context",
    "node_keys",
    "serialized",
    "serialized_context",
    "serve_tasks",
    "simulation",
]


class EngineEndedError(RuntimeError):
    """Flower's simulation engine has ended, and all its nodes with it."""


# The errors of a grid that reaches no node any more; all its other errors concern one reply only.
LINK_ERRORS = (OSError, httpx.TransportError, EngineEndedError)


def is_remote(grid: Any) -> bool:
    """Whether a SuperLink is between the server and its nodes: then a pull may wait for one node's upload."""
    from flwr.superlink.grid.http_grid import HttpGrid

    return isinstance(grid, HttpGrid)


def node_keys(grid: Any) -> dict[int, bytes]:
    """Node -> public key (PEM) that the SuperLink registered for it; b"" for none."""
    return {node.node_id: bytes(node.public_key) for node in grid.get_nodes()}


def enter(run_id: int = 1, node_id: int = 1, task_id: int = 1) -> None:
    """Set the identity of this process: Flower's `Message` cannot be created without it."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = task_id


def identity() -> tuple[int, int, int]:
    """(run, node, task) of this process, for `enter`. RuntimeError if they are not set."""
    return TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id


def new_context(node_id: int, node_config: dict[str, str | int | float | bool]) -> Context:
    """The context of one simulated node; keep it as long as the node."""
    return Context(run_id=1, node_id=node_id, node_config=node_config, state=RecordDict(), run_config={})


def serialized(message: Message) -> bytes:
    """The message as it is sent over a network."""
    data: bytes = message_to_proto(message).SerializeToString()
    return data


def deserialized(data: bytes) -> Message:
    from flwr.proto.message_pb2 import Message as Proto  # generated code without stubs

    return message_from_proto(Proto.FromString(data))


def serialized_context(context: Context) -> bytes:
    """The context as a SuperNode hands it to the process of a message."""
    data: bytes = context_to_proto(context).SerializeToString()
    return data


def deserialized_context(data: bytes) -> Context:
    from flwr.proto.message_pb2 import Context as Proto  # generated code without stubs

    return context_from_proto(Proto.FromString(data))


def serve_tasks(address: str, *, still_runs: Callable[[], bool]) -> None:
    """Fork for each message of the SuperNode whose runtime API is at `address`, in isolation mode `process`.

    It does what Flower's `flower-superexec` does, which starts `flwr-clientapp` for each message: a fork of this
    process has Flower's imports already. Ends by SystemExit, at the latest when the SuperNode does not run any more.
    """
    superexec = importlib.import_module("flwr.supercore.superexec.run_superexec")
    from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    forks: set[int] = set()

    class Forking(SubprocessExecutor):
        """Flower's executor of tasks, with forks in place of programs."""

        def launch(self, spec: ExecutionSpec) -> LaunchResult:
            if pid := os.fork():
                forks.add(pid)
                return LaunchResult.accepted()
            _fork_of_task(run_clientapp, spec)

        def reconcile(self) -> None:
            """Called by Flower before it looks for a task."""
            forks.difference_update({pid for pid in forks if os.waitpid(pid, os.WNOHANG) != (0, 0)})
            if not still_runs():
                raise SystemExit(0)

    # Flower chooses from its own kinds by name.
    setattr(superexec, "get_executor", lambda *args, **kwargs: Forking())  # noqa: B010  mypy knows no such attribute
    superexec.run_superexec(runtime_api_address=address, insecure=True)


def _fork_of_task(run_clientapp: Callable[..., None], spec: Any) -> NoReturn:
    """Be Flower's process of one message, and end. Whatever happens, the parent's code does not go on here."""
    from flwr.supercore.exit import exit_handler

    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        exit_handler.registered_exit_handlers.clear()  # the parent's
        sys.argv[:] = ["flwr-clientapp"]
        run_clientapp(
            spec.runtime_api_address,
            spec.token,
            spec.insecure,
            parent_pid=spec.parent_pid,
            runtime_dependency_install=spec.runtime_dependency_install,
        )
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def is_in_memory(grid: Any) -> bool:
    """Whether all clients share this machine, as in Flower's simulation engine."""
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)


def bundle(folder: Path) -> bytes:
    """The app directory as Flower sends it; ValueError if Flower refuses it (a name, a pattern, over 10 MB)."""
    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.utils import AppPathDepthError

    try:
        return bytes(build_fab_from_disk(folder))
    except AppPathDepthError as error:
        raise ValueError(str(error)) from None


@contextmanager
def simulation(
    app: ClientApp,
    nodes: int,
    *,
    address: str | None,
    resources: Mapping[str, float],
    environment: Mapping[str, str],
) -> Iterator[Any]:
    """Start Flower's simulation engine with nodes, and yield the grid; `address`: of an existing Ray cluster.

    The engine would run the server in a separate thread. Here the engine runs in the thread instead, so
    that Ctrl-C, the live view and the caller's stack stay in the main thread.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else each run starts with a warning about it
    import ray
    from flwr.simulation import run_simulation

    ray.init(
        address=address,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": dict(environment)},
    )
    handed: queue.Queue[Grid | BaseException] = queue.Queue()
    over = threading.Event()
    server = ServerApp()

    @server.main()
    def hand_over(grid: Grid, context: Context) -> None:
        handed.put(grid)
        over.wait()

    def engine() -> None:
        try:
            run_simulation(server, app, nodes, backend_config={"client_resources": dict(resources)})
        except BaseException as error:  # SystemExit too: it must reach the caller instead of ending a thread silently
            handed.put(error)

    thread = threading.Thread(target=engine, name="flower-simulation", daemon=True)
    logger, silence = logging.getLogger("flwr"), _OnlyErrors()
    logger.addFilter(silence)  # hides a deprecation and the engine's progress; the run has its own display
    thread.start()
    try:
        grid = handed.get()
        if isinstance(grid, BaseException):
            raise RuntimeError(f"Flower's simulation engine did not start: {grid}") from grid
        yield _Watched(grid, thread, handed)
    finally:
        over.set()
        thread.join(timeout=60)
        ray.shutdown()
        logger.removeFilter(silence)


class _Watched:
    """The engine's grid, which raises instead of waiting for a reply when the engine has ended."""

    def __init__(self, grid: Grid, engine: threading.Thread, said: "queue.Queue[Any]") -> None:
        self._grid, self._engine, self._said = grid, engine, said

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if not self._engine.is_alive():
            why = "" if self._said.empty() else f": {_cause(self._said.get())}"
            raise EngineEndedError(f"Flower's simulation engine has ended{why}")
        return self._grid.pull_messages(message_ids)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        return self._grid.get_nodes()


def _cause(error: BaseException) -> str:
    """The error inside the engine's own wrapper exceptions."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


class _OnlyErrors(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR
