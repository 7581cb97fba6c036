"""What a deployed client's message costs before and beside its training: a fresh process, until its reply."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fedq.data import digits, write_shard
from simulations.bench.deployed import WORDS, message_file
from simulations.bench.row import Row
from simulations.bench.timing import Contender, Effort, medians


def rows(effort: Effort) -> Iterator[Row]:
    """Imports, config, model and one round on 150 digits, which takes 10 ms without DP and 40 ms with."""
    with tempfile.TemporaryDirectory() as folder:
        data, shard = digits(), Path(folder) / "a.shard.npz"
        write_shard(shard, data.train[:150], data)
        contenders = {
            "client_startup": _process("fedq", message_file(Path(folder) / "off", WORDS["off"], shard)),
            "client_startup_dp": _process("fedq", message_file(Path(folder) / "dp", WORDS["dp"], shard)),
            "plain": _process("plain", shard),
        }
        seconds = medians(contenders, repeats=max(3, effort.repeats // 2), warmups=1)
    against = "fedq's client against a Flower client of ten lines with torch.optim, from process start to reply"
    limits = {
        "client_startup": "without Opacus; at most 2.5 s",
        "client_startup_dp": "with Opacus; at most 4.5 s",
    }
    for name, words in limits.items():
        yield Row(name, seconds[name], seconds["plain"], "s", "ours/reference", f"{against}; {words}")


def _process(kind: str, given: Path) -> Contender:
    command = [sys.executable, "-m", "simulations.bench.startup_client", kind, str(given)]

    def run() -> float:
        begun = time.time()
        done = subprocess.run(
            command, check=True, cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE, text=True
        )
        return float(done.stdout) - begun

    return run
