"""What one client task costs before anything is trained: our local runtime against Flower's Ray engine.

Both clients answer at once. Ours runs everything else that a real run does: requests, the app's guard and its
reading of the request, the count of bytes, the checks of the reply, decoding, the exact sum. Ray's side sends
the same content and gets it back; it neither checks nor sums, so what differs beside the runtime is in its favour.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from fedq import __version__, codec, wire
from fedq.client import Client
from fedq.codec import Float32, Int8, Layout, Segment
from fedq.experiment import Experiment
from fedq.runtime.local import InProcess
from fedq.server.strategy import MODEL, UPDATE, QuantizedFedAvg
from fedq.training.numerics import one_thread
from simulations.bench.ray_engine import RayEngine
from simulations.bench.row import PeerAbsentError, Row
from simulations.bench.timing import Effort, medians, num_cores

# Of 50, 100, 200, 400 and 800 nodes the size of round at which Ray's engine takes least for a task: below, its
# polling every 0.1 s weighs more; above, its scan of all waiting messages for every node does.
NODES = 200
COHORT = 10  # clients in a round of the demo
LARGE = 11_000_000  # parameters of a ResNet-18
LARGE_TASKS = 8  # in a round: each reply is 44 MB, and Ray's side holds them all
_ROUND = 1


def rows(effort: Effort) -> Iterator[Row]:
    """Three comparisons, each in ms of wall time for one task."""
    if find_spec("ray") is None:
        raise PeerAbsentError("ray is not installed: nothing to compare with. Install it: pip install -e '.[ray]'")
    digits = Layout([Segment("weight", (10, 64)), Segment("bias", (10,))])
    small = _Round(digits, Int8(), tasks=NODES)
    size = len(small.broadcast[MODEL])
    cores = num_cores()
    ray = f"run_simulation (Ray, {cores} actors on {cores} cores, {NODES} nodes, started and warm)"
    ours = "fedq's local runtime on one core, checks, decoding and exact sum included"
    with one_thread(), RayEngine(nodes=NODES, num_cpus=cores) as engine:
        yield _row(
            "task_overhead_trivial",
            small,
            lambda: engine.echo_bytes(size, tasks=NODES),
            effort.repeats,
            f"time per task of Flower's {ray} echoing {size} bytes in rounds of {NODES} tasks, over {ours}, for an "
            f"int8 packet of {digits.size} parameters",
        )
        yield _row(
            "task_overhead_cohort10",
            _Round(digits, Int8(), tasks=COHORT),
            lambda: engine.echo_bytes(size, tasks=COHORT),
            effort.repeats,
            f"the same in rounds of {COHORT} tasks, where Ray's engine mostly waits for its own polling",
        )
        yield _row(
            "task_overhead_11m",
            _Round(Layout.flat(LARGE), Float32(), tasks=LARGE_TASKS),
            lambda: engine.echo_array(LARGE, tasks=LARGE_TASKS),
            max(3, effort.repeats // 2),
            f"time per task of Flower's {ray} echoing an ArrayRecord of {LARGE:,} float32 values in rounds of "
            f"{LARGE_TASKS} tasks, over {ours}, for a float32 packet of as many",
        )


def _row(name: str, round: "_Round", ray: Any, repeats: int, words: str) -> Row:
    seconds = medians({"ours": round.run, "ray": ray}, repeats=repeats, warmups=3)
    ours, reference = (seconds[who] / round.tasks * 1e3 for who in ("ours", "ray"))
    return Row(name, ours, reference, "ms", "reference/ours", words)


class _Round:
    """One round of our local runtime, again and again, with clients that hold their answer ready."""

    def __init__(self, layout: Layout, packets: Any, *, tasks: int) -> None:
        self.tasks = tasks
        strategy = QuantizedFedAvg(layout, packets, version=__version__)
        weights = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
        self.broadcast = strategy.broadcast(weights, _ROUND)
        base = codec.digest(codec.decode(self.broadcast[MODEL], layout))
        update = codec.encode(
            weights * np.float32(0.01), packets, layout=layout, kind="delta", round=_ROUND, base=base
        )
        experiment = _Ready(layout, [str(i) for i in range(tasks)], wire.Reply(_ROUND, {UPDATE: update}, 1, 0.0))
        self._link = InProcess(cast(Experiment, experiment), strategy, Path("nothing-is-written"))
        self._asked = dict.fromkeys(experiment.identities, -1)
        self._link.meet()

    def run(self) -> None:
        total = self._link.gather(_ROUND, self.broadcast, self._asked)
        if len(total.accepted) != self.tasks:
            raise RuntimeError(f"replies were dropped, so this is no measure of a round: {total.reasons}")


@dataclass(frozen=True)
class _Ready:
    """What `InProcess` needs of an experiment: clients, and theirs is one reply."""

    layout: Layout
    identities: list[str]
    reply: wire.Reply

    def client(self, identity: str, *, folder: Path | None = None, run: str = "") -> Client:
        trainer = SimpleNamespace(layout=self.layout)  # of which a hello tells the digest
        ready = SimpleNamespace(identity=identity, trainer=trainer, train=lambda request: self.reply)
        return cast(Client, ready)
