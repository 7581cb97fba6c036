"""The command: mutates packets, prints what came of them, fails where one did what none may do."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 1 if anything else came of a mutation than a reason or what it declares, or a reason never did."""
    asked = _parser().parse_args(arguments)
    console = Console(highlight=False)
    from fedq.codec import jit  # after the environment is set
    from tests.fuzz import campaign
    from tests.fuzz.seeds import codecs, seeds

    numbers = range(asked.count) if asked.only is None else range(asked.only, asked.only + 1)
    console.print(f"{len(codecs())} codecs with options, {len(seeds())} valid packets, seed {asked.seed}")
    began = time.monotonic()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("mutations", total=len(numbers))

        def on_done(done: int) -> None:
            if done % 500 == 0:
                progress.update(task, completed=done)

        tally = campaign.run(numbers, seed=asked.seed, compiled_share=asked.compiled, on_done=on_done)
    _show(tally, console)
    if asked.compiled and jit.load() is None:
        console.print("the compiled kernels did not work here, and numpy stood in for them", style="red")
    console.print(f"{sum(tally.outcomes.values())} mutations in {time.monotonic() - began:.0f} s")
    for number, what in tally.violations:
        console.print(f"VIOLATION {what}", markup=False, style="red")
        replay = f"python -m tests.fuzz --seed {asked.seed} --compiled {asked.compiled} --only {number}"
        console.print(f"  again: {replay}", soft_wrap=True)
    if asked.only is None and tally.missing:
        console.print(f"reasons that never occurred: {', '.join(tally.missing)}", style="red")
        return 1
    return 1 if tally.violations else 0


def _show(tally, console: Console) -> None:
    outcomes = Table("outcome", "mutations")
    for outcome, count in tally.outcomes.most_common():
        outcomes.add_row(outcome, str(count))
    kinds = Table("mutation", "all", "outcomes")
    for kind, counts in sorted(tally.by_kind.items()):
        most = ", ".join(f"{outcome} {count}" for outcome, count in counts.most_common(5))
        kinds.add_row(kind, str(counts.total()), most + (", ..." if len(counts) > 5 else ""))
    console.print(outcomes, kinds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Mutate valid packets and read them.")
    parser.add_argument("--count", type=int, default=100_000, help="mutations")
    parser.add_argument("--seed", type=int, default=1, help="other mutations")
    parser.add_argument("--only", type=int, help="the mutation of this number alone")
    parser.add_argument(
        "--compiled", type=float, default=0.2, help="share of mutations that the compiled kernels read too"
    )
    return parser


if __name__ == "__main__":
    # Nobody checks the bounds of a kernel's arrays but numba, if told so before it compiles: not into the usual cache.
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("NUMBA_BOUNDSCHECK", "1")
        os.environ.setdefault("NUMBA_CACHE_DIR", cache)
        sys.exit(main())
