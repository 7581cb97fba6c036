"""How many files of fedq a call path enters: what a reader has to open to follow it.   python -m tests.paths [-v]

Measured on real calls of an experiment: a file counts if a function in it is called. The codec counts as one file
where it is not the path itself.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from fedq import codec
from fedq.config import compose
from fedq.experiment import build
from fedq.flower import wire
from fedq.privacy import DPSGD
from fedq.runtime.local import in_process
from fedq.server import GridLink

PACKAGE = str(Path(codec.__file__).resolve().parents[1])
# Path -> the number of files to aim at.
TARGETS = {
    "client's round": 10,
    "client's round under DP": 16,
    "server's round": 10,
    "DP step": 10,
    "int8 encode": 8,
}
SMALL = ["experiment=demo", "clients=2", "quant=off", "codec=int8"]


@contextmanager
def entered() -> Iterator[set[str]]:
    """The files of fedq in which a function was called inside."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            files.add(frame.f_code.co_filename[len(PACKAGE) + 1 :])

    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)


def counted(work: Callable[[], Any]) -> set[str]:
    """The files of the second call: the first one also makes what is kept."""
    work()
    with entered() as files:
        work()
    return files


def of_client(*overrides: str) -> set[str]:
    """From a request to the reply of one client."""
    experiment = build(compose([*SMALL, *overrides]))
    strategy = experiment.strategy()
    with tempfile.TemporaryDirectory() as folder:
        client = experiment.client("0", folder=Path(folder), run="run")
        rounds = iter((1, 2))

        def work() -> None:
            number = next(rounds)
            packets = strategy.broadcast(experiment.initial, number, ["0"]).packets("0")
            request = wire.Request(number, -1, packets)
            with entered() as files:
                client.train(request)
            found.append(files)

        found: list[set[str]] = []
        work()
        work()
    return found[1]


def of_server() -> set[str]:
    """Broadcast, checks, sums and the step of the server, without the work of clients."""
    experiment = build(compose([*SMALL, "privacy=off"]))
    with tempfile.TemporaryDirectory() as folder:
        strategy = experiment.strategy()
        link = in_process(experiment, strategy, Path(folder))
        link.meet()
        replies = _replies(strategy, link, experiment)
        with entered() as files:
            broadcast = strategy.broadcast(experiment.initial, 1, ["0", "1"])
            total = strategy.collect(1, iter(replies), ["0", "1"], link._roster, broadcast)
            strategy.step(1, experiment.initial, strategy.settle(total, broadcast))
    return files


def _replies(strategy: Any, link: GridLink, experiment: Any) -> list[Any]:
    broadcast = strategy.broadcast(experiment.initial, 1, ["0", "1"])
    messages = strategy.messages(1, broadcast, {"0": -1, "1": -1}, link._roster, task=wire.TRAIN)
    return list(link._exchange(messages, 60.0))


def of_dp_steps() -> set[str]:
    """The noised steps of a fit, without its checks and its spend."""
    found: set[str] = set()

    class Watched(DPSGD):
        def _noised_steps(self, *arguments: Any) -> None:
            with entered() as files:
                super()._noised_steps(*arguments)
            found.update(files)

    experiment = build(compose(SMALL))
    experiment.trainer.mechanism = Watched
    with tempfile.TemporaryDirectory() as folder:
        client = experiment.client("0", folder=Path(folder), run="run")
        packets = experiment.strategy().broadcast(experiment.initial, 1, ["0"]).packets("0")
        client.train(wire.Request(1, -1, packets))
    return found


def of_encode() -> set[str]:
    """A vector to an int8 packet."""
    experiment = build(compose([*SMALL, "privacy=off"]))
    vector = np.random.default_rng(0).normal(size=experiment.layout.size).astype(np.float32)
    return counted(lambda: codec.encode(vector, codec.Int8(), layout=experiment.layout))


def main() -> None:
    found = {
        "client's round": of_client("privacy=off"),
        "client's round under DP": of_client(),
        "server's round": of_server(),
        "DP step": of_dp_steps(),
        "int8 encode": of_encode(),
    }
    for path, files in found.items():
        if path != "int8 encode":
            files = {"codec" if file.startswith("codec/") else file for file in files}
        print(f"{path:26} {len(files):3} files, target {TARGETS[path]}")
        if "-v" in sys.argv:
            print("".join(f"    {file}\n" for file in sorted(files)), end="")


if __name__ == "__main__":
    main()
