"""Accuracy against bytes, both directions, for every codec: Fashion-MNIST, the tanh CNN, paired over 3 seeds.

Two settings: cross-device (100 clients, 10 a round: the full model is sent) and cross-silo (10 clients, all in each
round: changes and error feedback both ways). A pair shares partition, sampling and initialisation.

    python -m simulations.codec_accuracy             runs what is missing (57 runs of 1 to 2 minutes), writes all
    python -m simulations.codec_accuracy --table     writes them from the committed results
    python -m simulations.codec_accuracy cross_silo  one setting alone
"""

import sys
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedq.console import markdown_table, replace_table
from simulations.recipe import ROOT, interval, last_rounds, outcomes, paired

SEEDS = range(3)
TARGET = 0.85
DOCUMENT, PLOT = ROOT / "docs" / "codecs.md", ROOT / "docs" / "images" / "codecs.png"


def same(name: str, *options: str) -> list[str]:
    """Overrides for one codec in both directions, for weights and updates."""
    return [f"codec={name}", *(f"codec.{o}" for o in options), *ways("downlink", name, options)]


def changes(name: str, *options: str) -> list[str]:
    """Overrides for changes with error feedback in both directions, with one codec."""
    up = [f"codec={name}", "codec.error_feedback=true", *(f"codec.{o}" for o in options)]
    return up + ways("downlink", name, options) + ["downlink.kind=delta"]


def ways(group: str, name: str, options: Sequence[str] = ()) -> list[str]:
    return [f"{group}.name={name}", *(f"{group}.{o}" for o in options)]


def up_down(up: str, down: str, *options: str) -> list[str]:
    """Overrides for rotated packets with one codec up and another down."""
    return [f"codec={up}", "codec.rotate=true", *ways("downlink", down, ["rotate=true"]), *options]


R, EVEN = "rotate=true", ("rotate=false", "entropy=true")
SETTINGS: dict[str, dict[str, list[str]]] = {
    "cross_device": {
        "float32": [],
        "float16": same("float16"),
        "int8": same("int8"),
        "int4, rotated": same("int4", R),
        "int2, rotated": same("int2", R),
        "sign up, int4 down, rotated": up_down("sign", "int4"),
        "sign up, int2 down, rotated": up_down("sign", "int2"),
        "the same, 30 rounds of 4 epochs": up_down("sign", "int2", "rounds=30", "train.epochs=4"),
        "topk 5 % with feedback up, int4 down": ["codec=topk", "codec.fraction=0.05", *ways("downlink", "int4", [R])],
        "randk 10 % up, int4 down": ["codec=randk", "codec.fraction=0.1", *ways("downlink", "int4", [R])],
        "float32, 30 rounds of 4 epochs": ["rounds=30", "train.epochs=4"],
    },
    "cross_silo": {
        "float32": [],
        "float16": same("float16"),
        "int8 changes": changes("int8"),
        "int4 changes, rotated": changes("int4", R),
        "int2 changes, blocks of 256, deflated": changes("int2", "block=256", *EVEN),
        "int2 changes, blocks of 1024, deflated": changes("int2", "block=1024", *EVEN),
        "sign changes, rotated": changes("sign", R),
        "topk 5 % changes": changes("topk", "fraction=0.05"),
        "randk 5 % changes": changes("randk", "fraction=0.05"),
        "int2 changes, blocks of 4096, deflated": changes("int2", "block=4096", *EVEN),
        "int2, blocks of 1024, 60 rounds of 27 steps": [
            *changes("int2", "block=1024", *EVEN),
            "rounds=60",
            "train.steps=27",
        ],
        "float32, 60 rounds of 27 steps": ["rounds=60", "train.steps=27"],
    },
}
COST = {"cross_device": "100 devices, 10 a round, 60 rounds", "cross_silo": "10 institutions, all in each of 80 rounds"}


# The rows of README.md.
HIGHLIGHTS = (
    ("cross_device", "int4, rotated"),
    ("cross_device", "sign up, int4 down, rotated"),
    ("cross_device", "sign up, int2 down, rotated"),
    ("cross_silo", "int2 changes, blocks of 256, deflated"),
    ("cross_silo", "int2 changes, blocks of 4096, deflated"),
)


def bytes_to(result: Mapping[str, Any], target: float) -> int | None:
    """Bytes of all rounds until the accuracy first reaches the target; None if it never does."""
    spent = 0
    for row in result["history"]:
        spent += row["bytes_up"] + row["bytes_down"]
        if row["accuracy"] is not None and row["accuracy"] >= target:
            return spent
    return None


def found_in(setting: str, *, run: bool = True) -> dict[str, list[dict[str, Any]]]:
    """Codec -> its results, one for each seed. Missing results are computed, or with `run=False` an error."""
    kept = outcomes(
        "codec_accuracy", paired(setting, SETTINGS[setting].values(), SEEDS, [f"experiment={setting}"]), run=run
    )
    return {
        name: [kept[f"{setting}{number}-seed{seed}"] for seed in SEEDS] for number, name in enumerate(SETTINGS[setting])
    }


def table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """The table of all codecs in one setting."""
    rows = []
    for name, results in found.items():
        reached = [bytes_to(result, TARGET) for result in results]
        by_all = "not by all" if None in reached else f"{fmean(r for r in reached if r) / 1e6:.2f} MB"
        accuracy, points, sent, fewer = _cells(results, found["float32"])
        rows.append([name, accuracy, "" if name == "float32" else points, sent, fewer, by_all])
    header = [
        "codec",
        "accuracy, last 5 rounds",
        "points to float32 (95 %)",
        "bytes, both ways",
        "times fewer",
        f"bytes to {100 * TARGET:.0f} %",
    ]
    return markdown_table(header, rows)


def highlights(found: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> str:
    rows = []
    for setting, name in HIGHLIGHTS:
        accuracy, points, _, fewer = _cells(found[setting][name], found[setting]["float32"])
        rows.append([setting, name, accuracy, points, fewer])
    header = ["experiment", "codec", "accuracy", "points to float32 (95 %)", "times fewer bytes, both ways"]
    return markdown_table(header, rows)


def _cells(results: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> tuple[str, str, str, str]:
    """Accuracy, paired difference with its interval, bytes, and the factor of saved bytes."""
    scores = [last_rounds(result) for result in results]
    mean, half = interval([a - last_rounds(b) for a, b in zip(scores, plain, strict=True)])
    sent, total = fmean(map(_bytes, results)), fmean(map(_bytes, plain))
    return (
        f"{100 * fmean(scores):.2f} %",
        f"{100 * mean:+.2f} ± {100 * half:.2f}",
        f"{sent / 1e6:.2f} MB",
        f"{total / sent:.1f}",
    )


def plot(found: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> None:
    """Plot of the accuracy over bytes: one line for each codec, the mean of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, (setting, codecs) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for number, (name, results) in enumerate(codecs.items()):
            spent, accuracy = _curve(results)
            plain, color = name.startswith("float32"), "black" if name.startswith("float32") else f"C{number % 10}"
            style = "--" if name != "float32" and (plain or number > 10) else "-"
            axes.plot(spent, accuracy, style, label=name, color=color, linewidth=2.2 if plain else 1.4)
        axes.set(xscale="log", ylim=(60, 88), xlabel="MB sent, both ways", title=f"{setting}: {COST[setting]}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7, loc="lower right")
        axes.set_ylabel("test accuracy, %")
    figure.savefig(PLOT, dpi=120)


def _curve(results: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    spent, points = 0.0, []
    for rows in zip(*(result["history"] for result in results), strict=True):
        spent += fmean(row["bytes_up"] + row["bytes_down"] for row in rows) / 1e6
        if rows[0]["accuracy"] is not None and rows[0]["round"]:
            points.append((spent, 100 * fmean(row["accuracy"] for row in rows)))
    return [x for x, _ in points], [y for _, y in points]


def _bytes(result: Mapping[str, Any]) -> int:
    return int(result["bytes_up"]) + int(result["bytes_down"])


def main() -> None:
    asked = [setting for setting in SETTINGS if setting in sys.argv] or list(SETTINGS)
    found = {setting: found_in(setting) for setting in asked}
    for setting, codecs in found.items():
        replace_table(DOCUMENT, f"codec_accuracy_{setting}", table(codecs))
        print(f"{setting}: {COST[setting]}\n\n{table(codecs)}\n")
    if len(found) == len(SETTINGS):
        replace_table(ROOT / "docs" / "results.md", "codec_highlights", highlights(found))
        plot(found)


if __name__ == "__main__":
    main()
