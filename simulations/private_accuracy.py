"""Accuracy against epsilon: Fashion-MNIST in 10 institutions with DP in each, float32 and int8, over 3 seeds.

The tanh CNN end to end beside softmax regression on fixed wavelet coefficients (`experiment=private_fashion`), at delta
1e-5. A pair shares partition, sampling of clients and initialisation. Each run has its own noise, from a cryptographic
source. Hyperparameters were chosen on a validation part of the training set, which epsilon does not cover.

    python -m simulations.private_accuracy                  runs what is missing (48 runs), writes table and plot
    python -m simulations.private_accuracy --table          writes them from the committed results
    python -m simulations.private_accuracy scatter_linear   one model alone; writes only complete tables
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from statistics import fmean
from typing import Any

from fedq.console import markdown_table, replace_table
from simulations.recipe import ROOT, interval, outcomes

SEEDS = range(3)
DOCUMENT, PLOT = ROOT / "docs" / "private_accuracy.md", ROOT / "docs" / "images" / "private_accuracy.png"
PRECISIONS = {"float32": ["quant=off", "codec=float32"], "int8": ["quant=int8", "codec=int8"]}
OFF = ["privacy=off", "train.optimizer_options.momentum=0.9", "train.batch_size=600"]
# The overrides of each budget.
BUDGETS: dict[str, dict[str, list[str]]] = {
    "scatter_linear": {
        "1": ["privacy.target_epsilon=1", "train.lr=6.5"],
        "3": ["privacy.target_epsilon=3"],
        "8": ["privacy.target_epsilon=8", "train.lr=20.0", "strategy.ema=0.8"],
        "inf": [*OFF, "train.lr=0.1", "train.schedule=linear"],
    },
    "cnn": {
        "1": ["privacy.target_epsilon=1", "train.lr=10.0", "rounds=20"],
        "3": ["privacy.target_epsilon=3", "train.lr=20.0", "rounds=20"],
        "8": ["privacy.target_epsilon=8", "train.lr=30.0", "rounds=20"],
        "inf": [*OFF, "train.lr=0.5", "train.schedule=linear", "rounds=20"],
    },
}


def overrides(model: str, epsilon: str, precision: str) -> list[str]:
    return ["experiment=private_fashion", f"model={model}", *PRECISIONS[precision], *BUDGETS[model][epsilon]]


def runs(model: str) -> dict[str, list[str]]:
    """Label -> overrides, ordered by seed, so that an interrupted recipe leaves complete pairs."""
    return {
        f"{model}-{epsilon}-{precision}-seed{seed}": [*overrides(model, epsilon, precision), f"seed={seed}"]
        for seed in SEEDS
        for epsilon in BUDGETS[model]
        for precision in PRECISIONS
    }


_NOT_RUN = "not run"
_HEADER = ["model", "epsilon, delta 1e-5", "float32", "W8A8, int8 updates", "points (95 %)", "int8 model at the end"]


def _of(found: Mapping[str, Mapping[str, Any]], model: str, epsilon: str, precision: str) -> list[Mapping[str, Any]]:
    """The results of all seeds; [] if one is missing."""
    labels = [f"{model}-{epsilon}-{precision}-seed{seed}" for seed in SEEDS]
    return [found[label] for label in labels] if set(labels) <= found.keys() else []


def _interval_text(values: Sequence[float]) -> str:
    if not values:
        return _NOT_RUN
    mean, half = interval(values)
    return f"{100 * mean:.2f} ± {100 * half:.2f} %"


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for model, budgets in BUDGETS.items():
        for epsilon in budgets:
            plain, small = (_of(found, model, epsilon, precision) for precision in PRECISIONS)
            accuracy = [[result["accuracy"] for result in results] for results in (plain, small)]
            spent = "off" if epsilon == "inf" else epsilon
            points = delivered = _NOT_RUN
            if plain and small:
                mean, half = interval([b - a for a, b in zip(*accuracy, strict=True)])
                points = f"{100 * mean:+.2f} ± {100 * half:.2f}"
            if small:
                delivered = f"{100 * fmean(result['int8_accuracy'] for result in small):.2f} %"
            rows.append([model, spent, *map(_interval_text, accuracy), points, delivered])
    return markdown_table(_HEADER, rows)


def highlights(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of the better model."""
    lines = table(found).splitlines()
    return "\n".join([*lines[:2], *(line for line in lines[2:] if line.startswith("| scatter_linear "))])


def plot(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Plot of the accuracy over epsilon with 95 % intervals over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for color, (model, budgets) in zip(("C0", "C1"), BUDGETS.items(), strict=True):
        for style, precision in zip(("--", "-"), PRECISIONS, strict=True):
            known = {
                place: interval([100 * result["accuracy"] for result in results])
                for place, epsilon in enumerate(budgets)
                if (results := _of(found, model, epsilon, precision))
            }
            if known:
                means, halves = zip(*known.values(), strict=True)
                name = f"{model}, {precision}"
                axes.errorbar(list(known), means, halves, linestyle=style, color=color, capsize=3, label=name)
        axes.set_xticks(range(len(budgets)), ["off" if epsilon == "inf" else epsilon for epsilon in budgets])
    axes.set(xlabel="epsilon of each client, delta 1e-5", ylabel="test accuracy, %", title="Fashion-MNIST, 10 clients")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(PLOT, dpi=120)


def main() -> None:
    asked = [model for model in BUDGETS if model in sys.argv] or list(BUDGETS)
    found: dict[str, dict[str, Any]] = {}
    for model in asked:
        for label, words in runs(model).items():
            with suppress(SystemExit) if "--table" in sys.argv else nullcontext():  # a missing row prints a message
                found |= outcomes("private_accuracy", {label: words})
    if asked == list(BUDGETS):
        text = table(found)
        replace_table(DOCUMENT, "private_accuracy", text)
        replace_table(ROOT / "docs" / "results.md", "private_highlights", highlights(found))
        plot(found)
        print(text)


if __name__ == "__main__":
    main()
