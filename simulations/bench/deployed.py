"""One message to a client of a deployment in steady state: from when Flower starts its process to the reply.

What Flower does before and after, for every app alike, is left out: polling, and fetching and sending the message.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
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

_PROGRAM = [sys.executable, "-m", "simulations.bench.deployed_client"]
_ROOT = Path(__file__).resolve().parents[2]
# More rounds than the demo has: each repeat is a spend of its own, for which there must be a budget.
WORDS = {"off": ["experiment=demo", "privacy=off"], "dp": ["experiment=demo", "rounds=400"]}
_WARMUPS = 2  # the first message starts the warm process, the second waits for it
ROWS = {
    "deployed_message": ("node", "off", "under fedq client node, privacy=off; at most 1.0 s"),
    "deployed_message_dp": ("node", "dp", "under fedq client node, privacy=example; at most 1.0 s"),
    "deployed_message_supernode": ("program", "off", "under flower-supernode, privacy=off"),
    "deployed_message_supernode_dp": ("program", "dp", "under flower-supernode, privacy=example"),
}


def rows(effort: Effort) -> Iterator[Row]:
    """One round on 150 digits, which takes 10 ms without DP and 40 ms with."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        data, shard = digits(), Path(folder) / "a.shard.npz"
        write_shard(shard, data.train[:150], data)
        contenders: dict[str, Contender] = {"plain": _program("plain", shard), "flower": _program("imports", shard)}
        for name, (kind, privacy, _) in ROWS.items():
            given = message_file(Path(folder) / name, WORDS[privacy], shard)
            contenders[name] = _program("message", given) if kind == "program" else _node(given, stack)
        seconds = medians(contenders, repeats=max(3, effort.repeats // 2), warmups=_WARMUPS)
    for name, (_, _, words) in ROWS.items():
        against = "fedq's client against a Flower client of ten lines with torch.optim under flower-supernode"
        imports = f"Flower's imports, which flower-supernode repeats for each message, take {seconds['flower']:.2f} s"
        yield Row(name, seconds[name], seconds["plain"], "s", "ours/reference", f"{against}; {words}; {imports}")


def message_file(place: Path, words: list[str], shard: Path) -> Path:
    """A file with a context and a message of training, as a SuperNode hands them to the process of a message."""
    experiment = build(compose(words))
    flower.enter()
    layout, packets = experiment.layout, experiment.codec
    model = codec.encode(np.zeros(layout.size, np.float32), packets, layout=layout, kind="weights", round=1)
    request = Message(
        wire.write_request(wire.Request(1, -1, {"model": model}, holdout=experiment.holdout)), 1, wire.TRAIN
    )
    node: dict[str, str | int | float | bool] = {"partition-id": 0, "data-path": str(shard), "state-dir": str(place)}
    overrides = json.dumps([*words, "runtime=deployment"])
    context = Context(1, 1, node, RecordDict(), {"overrides": overrides})
    place.mkdir()
    (path := place / "message.txt").write_text(
        f"{flower.serialized_context(context).hex()}\n{flower.serialized(request).hex()}", encoding="ascii"
    )
    return path


def _program(kind: str, given: Path) -> Contender:
    """A process for each message, as `flower-supernode` starts them: a child of this one."""

    def run() -> float:
        begun = time.time()
        done = subprocess.run([*_PROGRAM, kind, str(given)], check=True, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
        return float(done.stdout) - begun

    return run


def _node(given: Path, stack: ExitStack) -> Contender:
    """A fork for each message, of a process that goes on."""
    node = subprocess.Popen(
        [*_PROGRAM, "node", str(given)], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stack.enter_context(node)  # closes its stdin at the end, and waits for it
    assert node.stdin is not None
    assert node.stdout is not None
    ask, answers = node.stdin, node.stdout
    answers.readline()  # it has imported everything

    def run() -> float:
        begun = time.time()
        ask.write("\n")
        ask.flush()
        return float(answers.readline()) - begun

    return run
