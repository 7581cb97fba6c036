"""Runs the missing experiments of a table, and keeps small result files. Knows fedq's Python API and files.

A result file has the experiment's config hash in its name and stores the code version, a digest of the packages that
decide the figures. So a finished run is not run again, unless its code has changed.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fedq
from fedq.config import compose, rules

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "simulations" / "results"
# Code that cannot change a figure of a local run: display, plots, command line, and code for other runtimes.
IDLE = (
    "results/",
    "console/",
    "audit/",
    "new/",
    "cli/",
    "artifacts/loading.py",
    "artifacts/statement.py",
    "app/__init__.py",
    "app/bundle.py",
    "app/direct.py",
    "app/host.py",
    "app/node.py",
    "app/warm/",
    "client/mod.py",
    "config/network.py",
    "experiment/rebuild.py",
    "quant/inspection.py",
    "runtime/connection.py",
    "runtime/credentials.py",
    "runtime/deployment.py",
    "runtime/processes.py",
    "runtime/ray.py",
    "runtime/rehearsal.py",
    "runtime/stage.py",
    "runtime/observers.py",
    "runtime/headline.py",
    "server/adapter.py",
    "server/flower_loop.py",
    "flower/grid.py",
    "flower/wire/foreign.py",
)


def code_version() -> str:
    """12 hex digits of a digest over the source of the packages that decide figures."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "fedq").rglob("*.py")):
        if not file.relative_to(ROOT / "fedq").as_posix().startswith(IDLE):
            digest.update(file.relative_to(ROOT).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def outcomes(
    table: str,
    runs: Mapping[str, Sequence[str]],
    *,
    run: bool = True,
    also: Callable[[fedq.Result], dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Label -> result of every run of a table; missing runs are made now, one after the other.

    With `run=False`, or `--table` on the command line, nothing is run: the stored results are read, with a message if
    their code has changed since. `also` measures the final model once more, while its weights are in memory; its
    figures are kept under "also".
    """
    version, run = code_version(), run and "--table" not in sys.argv
    found: dict[str, dict[str, Any]] = {}
    for label, overrides in runs.items():
        experiment = rules.config_hash(compose(overrides))
        path = RESULTS / table / f"result-{label}-{experiment}.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if kept is not None and kept["code_version"] != version and not run:
            print(f"{label}: of code {kept['code_version']}, today's is {version}", file=sys.stderr)
        elif run and (kept is None or kept["code_version"] != version):
            kept = _run(label, overrides, version, also)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        if kept is None:
            raise SystemExit(f"{path} is not there; run the recipe without --table")
        found[label] = kept
    return found


_KEPT = ("round", "accuracy", "loss", "epsilon", "bytes_up", "bytes_down")  # fields kept of each round


def _run(
    label: str, overrides: Sequence[str], version: str, also: Callable[[fedq.Result], dict[str, Any]] | None
) -> dict[str, Any]:
    print(f"{label}: fedq run {' '.join(overrides)}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        result = fedq.run(overrides, root=scratch)
        extra = {} if also is None else {"also": also(result)}
    history = [{k: asdict(row)[k] for k in _KEPT} for row in result.history]
    return {**result.to_dict(), **extra, "code_version": version, "overrides": list(overrides), "history": history}


def last_rounds(result: Mapping[str, Any], count: int = 5) -> float:
    """Mean accuracy over the last rounds."""
    known = [row["accuracy"] for row in result["history"] if row["accuracy"] is not None]
    return float(sum(known[-count:]) / len(known[-count:]))


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of Student's interval for it."""
    import numpy as np
    from scipy import stats

    spread = np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * spread)


def paired(
    label: str, settings: Iterable[Sequence[str]], seeds: Iterable[int], common: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Label and number of a setting, and seed -> overrides. A seed's runs stand together, so that a table that is cut
    off holds whole pairs.
    """
    numbered = list(enumerate(settings))
    return {
        f"{label}{number}-seed{seed}": [*common, *overrides, f"seed={seed}"]
        for seed in seeds
        for number, overrides in numbered
    }
