"""The command: atheris looks for inputs that reach new lines of fedq.codec. Knows libFuzzer and the oracle.

Two processes: libFuzzer ends its own without a word to Python, so what it counts stands in a file that both map.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

CRASHES = Path("outputs/fuzz")
LONGEST = 4096  # bytes of an input
# The first byte of an input says what it is: a packet of one of the layouts, sums of one, a layout, a packet as it is.
_KINDS = 16
_COUNTS, _CORPUS = "counts", "corpus"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: not 0 if the oracle was violated, or an input took too long or too much memory."""
    asked = _parser().parse_args(arguments)
    if asked.child:
        _fuzz(Path(asked.child), asked)
    console = Console(highlight=False)
    CRASHES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        counts = _counts(Path(folder), mode="w+")
        told = ["--child", folder, "--seconds", str(asked.seconds), "--seed", str(asked.seed), *asked.inputs]
        # Compiled kernels have no lines that atheris could count.
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", *told],
            env=os.environ | {"FEDQ_JIT": "0"},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        counts = np.array(counts)
    said = done.stderr.splitlines()
    if done.returncode:
        console.print("\n".join(said[-60:]), markup=False)
        console.print(f"guided fuzzing failed with status {done.returncode}: again with", style="red")
        console.print("  python -m tests.fuzz.guided FILE, of the file that is named above", style="red")
    _show(counts, console)
    console.print("\n".join(line for line in said if "INITED" in line or "DONE" in line), markup=False)
    return done.returncode


def _show(counts: np.ndarray, console: Console) -> None:
    from tests.fuzz.oracle import OUTCOMES

    table = Table("outcome", "inputs")
    for at in np.argsort(-counts, kind="stable"):
        if counts[at]:
            table.add_row(OUTCOMES[at], str(counts[at]))
    console.print(table)
    console.print(f"{counts.sum()} inputs")


def _counts(folder: Path, *, mode: str) -> np.memmap:
    from tests.fuzz.oracle import OUTCOMES

    return np.memmap(folder / _COUNTS, np.int64, mode, shape=(len(OUTCOMES),))


def _fuzz(folder: Path, asked: argparse.Namespace) -> None:
    """Does not return."""
    import warnings

    import atheris

    with atheris.instrument_imports(include=["fedq.codec"]):
        from tests.fuzz import oracle, seeds

    counts = _counts(folder, mode="r+")
    place = {outcome: at for at, outcome in enumerate(oracle.OUTCOMES)}

    def one_input(data: bytes) -> None:
        if len(data) >= 2:
            counts[place[oracle.check(_case_of(data))]] += 1

    if not asked.inputs:
        (folder / _CORPUS).mkdir()
        for number, data in enumerate(_corpus(seeds)):
            (folder / _CORPUS / str(number)).write_bytes(data)
    options = [f"-max_total_time={asked.seconds}", f"-seed={asked.seed}", f"-max_len={LONGEST}", "-timeout=20"]
    inputs = asked.inputs or [str(folder / _CORPUS)]
    warnings.simplefilter("error")
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={CRASHES}/", *inputs], one_input)
    atheris.Fuzz()


def _corpus(seeds):
    """Inputs that decode."""
    layouts = list(seeds.LAYOUTS.values())
    for seed in seeds.seeds():
        if len(seed.packet) < LONGEST - 2:
            yield bytes([layouts.index(seed.layout), 0]) + seed.packet
    for at, layout in enumerate(layouts):
        for sums in seeds.accumulators(layout):
            if len(sums) < LONGEST - 2:
                yield bytes([len(layouts) + at, 0]) + sums
        yield bytes([2 * len(layouts), 0]) + layout.to_bytes()


def _case_of(data: bytes):
    """What an input means. Magic, layout, length and checksum are fixed: by chance nothing would come past them."""
    from tests.fuzz.mutate import sealed
    from tests.fuzz.oracle import Case
    from tests.fuzz.seeds import BASE, LAYOUTS, accumulators

    layouts = list(LAYOUTS.values())
    kind, told, data = data[0] % _KINDS, data[1], data[2:]
    target, at = divmod(kind, len(layouts))
    layout = layouts[at]
    if kind == 2 * len(layouts):
        return Case("layout", data, layout)
    if target < 2:
        if not told & 0x80:
            data = (b"FEDQ\2\0", b"FQAC\1\0")[target] + data[6:16] + layout.digest + data[32:]
        data = sealed(data, keep_length=target == 1)
    if target == 1:
        return Case("accumulator", data, layout, weight=2.0**20)
    expected = ({}, {"round": 7}, {"kind": "delta"}, {"base": BASE})[told & 3]
    weight = (1.0, 2.0**20, 2.0**-20, 0)[told >> 2 & 3]
    sums = accumulators(layout)[(told >> 4 & 7) % 3]
    return Case("packet", data, layout, expected=expected, weight=weight, sums=sums)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.guided", description="Fuzz the codec, guided by which of its lines are reached."
    )
    parser.add_argument("inputs", nargs="*", metavar="FILE", help="read these inputs once, and look for no others")
    parser.add_argument("--seconds", type=int, default=60, help="how long to look")
    parser.add_argument("--seed", type=int, default=0, help="libFuzzer's; 0: another one each time")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
