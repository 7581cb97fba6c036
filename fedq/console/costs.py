"""The cost of a part of a run in accuracy, from earlier runs without that part. Knows result files; runs nothing."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from fedq.console.next_steps import shown_path
from fedq.console.report import PartCost
from fedq.results.result import Result, read_summary

# part -> (group, key, and the value that turns it off)
PARTS = {
    "quantization-aware training": ("quant", "name", "off"),
    "differential privacy": ("privacy", "unit", "off"),
    "compressed packets": ("codec", "name", "float32"),
}
_LATEST = 500  # largest number of run folders that are read, newest first


def known_costs(result: Result, folders: Iterable[Path]) -> list[PartCost]:
    """For each part that is on: its cost, from runs under the folders that differ in that part alone."""
    if result.accuracy is None:
        return []
    found: list[PartCost] = []
    others = list(_summaries(folders))
    for part, (group, key, off) in PARTS.items():
        if result.config[group][key] == off or _of_objects(result.config):
            continue
        without = [
            (other["accuracy"], where)
            for other, where in others
            if other["config"].get(group, {}).get(key) == off and _same_but(group, other["config"], result.config)
        ]
        if without:
            count = f"mean of {len(without)} runs" if len(without) > 1 else without[0][1]
            found.append(PartCost(part, fmean(a for a, _ in without), result.accuracy, count))
    return found


def _of_objects(config: Mapping[str, Any]) -> bool:
    """Whether model or data were Python objects, whose names do not identify them."""
    return any(str(config[group].get("_target_")).startswith("object:") for group in ("model", "data"))


def _same_but(group: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configs differ in this group alone. An option that one of them leaves out has no effect there."""
    return all(_agree(one[key], other[key]) for key in (one.keys() & other.keys()) - {group})


def _agree(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict) and not {"_target_", "name"} & (one.keys() ^ other.keys()):
        return all(_agree(one[key], other[key]) for key in one.keys() & other.keys())
    return bool(one == other)


def _summaries(folders: Iterable[Path]) -> Iterable[tuple[dict[str, Any], str]]:
    """(fields of result.json, folder) of finished runs with an accuracy."""
    for folder in folders:
        # Sorted by name, which begins with the date: a file that is deleted meanwhile must not cause an error.
        for file in sorted(folder.glob("**/result*.json"), reverse=True)[:_LATEST]:
            summary = read_summary(file)
            if summary is not None and summary.get("status") == "finished" and summary.get("accuracy") is not None:
                yield summary, str(shown_path(file.parent))
