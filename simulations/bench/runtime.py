"""What one client task costs before anything is trained: our local runtime against Flower's Ray engine.

Both clients answer at once: what a real one does in between (decode, train, encode, log) is left out on both sides.
All else of ours is as in a real run: requests, the app's guard and its reading of the request, the count of bytes, the
checks of the reply, its decoding, the exact sum. Ray's side sends as many bytes and gets them back; its server neither
checks nor sums, so what differs beside the runtime is in its favour.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from fedq import __version__, codec
from fedq.client import Client
from fedq.codec import Float32, Layout, Segment
from fedq.experiment import Experiment
from fedq.flower import wire
from fedq.runtime.local import in_process
from fedq.server import Strategy, Terms
from fedq.training.numerics import one_thread
from simulations.bench.ray_engine import RayEngine
from simulations.bench.row import PeerAbsentError, Row
from simulations.bench.timing import Contender, Effort, medians, num_cores

# On 2 cores, of 50, 100, 200, 300, 400 and 800 the size of round at which Ray's engine took least for a task: below,
# its polling every 0.1 s weighs more; above, its scan of all waiting messages for every node does.
NODES = 200
COHORT = 10  # clients in a round of the demo
SMALL = Layout([Segment("weight", (10, 64)), Segment("bias", (10,))])  # model=linear on the digits
LARGE = Layout.flat(11_000_000)  # as many as a ResNet-18 has
LARGE_TASKS = 8  # in a round: each reply is 44 MB, and Ray's side holds them all
_ROUND = 1


def rows(effort: Effort) -> Iterator[Row]:
    """Three comparisons, each in ms of wall time for one task."""
    if find_spec("ray") is None:
        raise PeerAbsentError('ray is not installed: nothing to compare with. Install it: pip install -e ".[ray]"')
    cores = num_cores()
    ours = (
        f"fedq's local runtime on one core, with float32 packets of {SMALL.size} parameters, "
        "byte counts, checks, decoding and the exact sum"
    )
    ray = (
        f"Flower's run_simulation on Ray (start-up excluded; {cores} actors on {cores} cores, {NODES} nodes, "
        "its grid polling every 0.1 s as it does by default)"
    )
    small = _Rounds(SMALL, tasks=NODES, rounds=5)
    size = len(small.broadcast.whole)
    with one_thread(), RayEngine(nodes=NODES, num_cpus=cores) as engine:
        yield _row(
            "task_overhead_trivial",
            small,
            lambda: engine.echo_bytes(size, tasks=NODES),
            repeats=effort.repeats,
            warmups=1,
            words=f"wall time per task of {ray} echoing {size} bytes and summing nothing, over that of {ours}; "
            f"rounds of {NODES} tasks, the size at which Ray took least for each",
        )
        yield _row(
            "task_overhead_cohort10",
            _Rounds(SMALL, tasks=COHORT, rounds=50),
            lambda: engine.echo_bytes(size, tasks=COHORT),
            repeats=effort.repeats,
            warmups=1,
            words=f"the same in rounds of {COHORT} tasks, where Ray's engine mostly waits for its own polling",
        )
        yield _row(
            "task_overhead_11m",
            _Rounds(LARGE, tasks=LARGE_TASKS, rounds=1),
            lambda: engine.echo_array(LARGE.size, tasks=LARGE_TASKS),
            repeats=max(3, effort.repeats // 2),
            warmups=3,  # Ray's shared memory is slow where it is touched for the first time
            words=f"the same for {LARGE.size:,} float32 parameters, an ArrayRecord of one array on Ray's side; "
            f"rounds of {LARGE_TASKS} tasks",
        )


def _row(name: str, rounds: "_Rounds", ray: Contender, *, repeats: int, warmups: int, words: str) -> Row:
    seconds = medians({"ours": rounds.run, "ray": ray}, repeats=repeats, warmups=warmups)
    ours, reference = (seconds[who] / rounds.tasks * 1e3 for who in ("ours", "ray"))
    return Row(name, ours, reference, "ms", "reference/ours", words)


class _Rounds:
    """One round of our local runtime, again and again, with clients that hold their answer ready.

    Small rounds are run several at a time, so that one timing takes at least 50 ms.
    """

    def __init__(self, layout: Layout, *, tasks: int, rounds: int) -> None:
        self.tasks, self._repeated = tasks, range(rounds)
        strategy = Strategy(layout, Float32(), terms=Terms(version=__version__))
        weights = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
        names = [str(i) for i in range(tasks)]
        self.broadcast = strategy.broadcast(weights, _ROUND, names)
        change = weights * np.float32(0.01)
        update = codec.encode(change, Float32(), layout=layout, kind="delta", round=_ROUND, base=self.broadcast.base)
        experiment = _Ready(layout, names, wire.Reply(_ROUND, {wire.UPDATE: update}, 1, 0.0))
        self._link = in_process(cast(Experiment, experiment), strategy, Path("nothing-is-written"))
        self._asked = dict.fromkeys(experiment.identities, -1)
        self._link.meet()

    def run(self) -> float:
        """Mean seconds of a round."""
        begun = time.perf_counter()
        for _ in self._repeated:
            total = self._link.gather(_ROUND, self.broadcast, self._asked)
            if len(total.accepted) != self.tasks:
                raise RuntimeError(f"replies were dropped, so this is no measure of a round: {total.reasons}")
        return (time.perf_counter() - begun) / len(self._repeated)


@dataclass(frozen=True)
class _Ready:
    """What `in_process` needs of an experiment: clients, and theirs is one reply."""

    layout: Layout
    identities: list[str]
    reply: wire.Reply

    def client(self, identity: str, **where: Any) -> Client:
        answers = {"train": lambda request: self.reply, "check_account": lambda: None}
        ready = SimpleNamespace(identity=identity, layout_digest=self.layout.digest, **answers)
        return cast(Client, ready)
