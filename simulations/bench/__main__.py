"""The command: runs one benchmark and prints what it found. Knows no benchmark but by name."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console

from simulations.bench import BENCHMARKS
from simulations.bench.row import PeerAbsentError, show
from simulations.bench.timing import FULL, QUICK, machine, pin_threads


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status. With --json stdout holds rows and nothing else; whatever a human should know is on stderr."""
    asked = _parser().parse_args(arguments)
    notices = Console(stderr=asked.json, soft_wrap=True, highlight=False)
    notices.print(machine(), markup=False)
    rows = import_module(BENCHMARKS[asked.name]).rows(FULL if asked.full else QUICK)
    try:
        if asked.json:
            for row in rows:
                print(row.to_json(), flush=True)
        else:
            show(list(rows), Console(highlight=False))
    except PeerAbsentError as absent:
        notices.print(str(absent), markup=False)
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.bench", description="Measure fedq against a peer on this machine."
    )
    parser.add_argument("name", metavar="NAME", choices=BENCHMARKS, help=f"one of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each comparison")
    parser.add_argument("--full", action="store_true", help="five times the repeats")
    return parser


if __name__ == "__main__":
    pin_threads()
    sys.exit(main())
