"""One message to a client on a SuperNode in steady state: from the start of Flower's process to the reply.

Both sides start `flwr-clientapp`'s own imports for each message, as a SuperNode does. fedq's process then hands the
message to a warm process; a plain Flower app imports torch again and does the work.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict

from fedq import codec
from fedq.config import compose
from fedq.data import digits, write_shard
from fedq.experiment import build
from fedq.flower import private as flower
from fedq.flower import wire
from simulations.bench.row import Row
from simulations.bench.timing import Contender, Effort, medians

_ROOT = Path(__file__).resolve().parents[2]
# More rounds than the demo has: each repeat is a spend of its own, for which there must be a budget.
_WORDS = {
    "deployed_message": ["experiment=demo", "privacy=off"],
    "deployed_message_dp": ["experiment=demo", "rounds=400"],
}
_WARMUPS = 2  # the first starts the warm process, the second waits for it


def rows(effort: Effort) -> Iterator[Row]:
    """One round on 150 digits, without and with DP."""
    with tempfile.TemporaryDirectory() as folder:
        place, data = Path(folder), digits()
        write_shard(shard := place / "a.shard.npz", data.train[:150], data)
        contenders = {name: _process("message", _request(place / name, words, shard)) for name, words in _WORDS.items()}
        contenders["plain"] = _process("plain_message", shard)
        contenders["flower"] = _process("nothing", shard)
        seconds = medians(contenders, repeats=max(3, effort.repeats // 2), warmups=_WARMUPS)
    for name in _WORDS:
        yield Row(
            name,
            seconds[name],
            seconds["plain"],
            "s",
            "ours/reference",
            f"a message to fedq's client on a SuperNode against a Flower client of ten lines with torch.optim, from the "
            f"start of Flower's process to the reply; its own imports alone take {seconds['flower']:.2f} s",
        )


def _request(place: Path, words: list[str], shard: Path) -> Path:
    """A file with the context and the message of a round, as a SuperNode hands them to its process."""
    experiment = build(compose(words))
    flower.enter()
    weights = np.zeros(experiment.layout.size, np.float32)
    codec_of_packets = experiment.strategy().codec
    model = codec.encode(weights, codec_of_packets, layout=experiment.layout, kind="weights", round=1)
    request = Message(wire.write_request(wire.Request(1, -1, {"model": model})), 1, wire.TRAIN)
    node: dict[str, str | int | float | bool] = {"partition-id": 0, "data-path": str(shard), "state-dir": str(place)}
    overrides = json.dumps([*words, "runtime=deployment"])
    context = Context(1, 1, node, RecordDict(), {"overrides": overrides})
    place.mkdir()
    np.savez(
        path := place / "message.npz",
        context=np.frombuffer(flower.serialized_context(context), np.uint8),
        message=np.frombuffer(flower.serialized(request), np.uint8),
    )
    return path


def _process(kind: str, given: Path) -> Contender:
    command = [sys.executable, "-m", "simulations.bench.deployed_client", kind, str(given)]

    def run() -> float:
        begun = time.time()
        done = subprocess.run(command, check=True, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
        return float(done.stdout) - begun

    return run


def parent() -> int:
    """The process with which warm processes of this benchmark end."""
    return os.getpid()
