"""Accuracy against bits and zeros: Fashion-MNIST, federated, quantized in training and after it, paired over 3 seeds.

Three tables. `bits`: the tanh CNN at 8 and 4 bits and ternary, trained with quantization (QAT), and the float32 runs
quantized after training (PTQ). `sparse`: int8 with 0 to 98 % of the weights pruned, the tanh CNN and an mlp, and that
mlp in float32. `private`: an mlp under DP at epsilon 3. A pair shares partition, sampling and initialisation; each run
of `private` has its own noise, from a cryptographic source.

    python -m simulations.quant_accuracy           runs what is missing (54 runs of half a minute to 3), writes all
    python -m simulations.quant_accuracy --table   writes them from the committed results
    python -m simulations.quant_accuracy bits      one table alone
"""

import sys
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

import fedq
from fedq.console import markdown_table, replace_table
from fedq.data import fashion_mnist
from fedq.models import cnn
from fedq.quant import with_fixed_ranges
from simulations.recipe import ROOT, interval, last_rounds, outcomes, paired

SEEDS = range(3)
DOCUMENT = ROOT / "docs" / "quantization.md"
DEVICES = ["experiment=cross_device", "strategy.evaluate_every=10"]
# These runs were made before discrete noise became the default.
SILOS = ["experiment=private_silo", "strategy.evaluate_every=10", "privacy.noise=gaussian"]
BITS = {"W8A8": "int8", "W4A8": "int4", "ternary, A8": "ternary"}
SPARSITIES = {"mlp": (0.0, 0.5, 0.8, 0.9, 0.95, 0.98), "cnn": (0.0, 0.5, 0.8, 0.9)}
CALIBRATION = 1024  # training images that calibrate the ranges of PTQ


def _sparse(model: str, sparsity: float) -> list[str]:
    pruned = [f"quant.sparsity={sparsity}", "quant.sparsity_end=0.5"] if sparsity else []
    return [*DEVICES, f"model={model}", "quant=int8", *pruned]


SETTINGS: dict[str, dict[str, list[str]]] = {
    "bits": {"float32": DEVICES, **{name: [*DEVICES, f"quant={quant}"] for name, quant in BITS.items()}},
    "sparse": {
        f"{model}, {'dense' if not s else f'{100 * s:g} % zeros'}": _sparse(model, s)
        for model, shares in SPARSITIES.items()
        for s in shares
    }
    | {"mlp, float32": [*DEVICES, "model=mlp"]},
    "private": {"float32": SILOS, "W8A8": [*SILOS, "quant=int8"], "W4A8": [*SILOS, "quant=int4"]},
}


def after_training(result: fedq.Result) -> dict[str, Any]:
    """Test accuracy of a float32 run's model, quantized after training with calibrated ranges."""
    if result.quantized:
        return {}
    data = fashion_mnist()
    assert data.test is not None
    found = {}
    for name, weights in zip(BITS, (8, 4, 2), strict=True):
        model = cnn((1, 28, 28), 10)
        model.load_state_dict({key: torch.from_numpy(array) for key, array in result.arrays.items()})
        fedq.quantize(model, weights=weights, ranges="dynamic")
        fixed = with_fixed_ranges(model, torch.from_numpy(data.train.inputs[:CALIBRATION]))
        with torch.inference_mode():
            parts = [fixed(torch.from_numpy(part)).argmax(1) for part in np.array_split(data.test.inputs, 10)]
        found[name] = float((torch.cat(parts).numpy() == data.test.targets).mean())
    return found


def found_in(table: str) -> dict[str, list[dict[str, Any]]]:
    """Setting -> its results, one for each seed; missing results are computed."""
    kept = outcomes(
        "quant_accuracy",
        paired(table, SETTINGS[table].values(), SEEDS),
        also=after_training if table == "bits" else None,
    )
    return {
        name: [kept[f"{table}{number}-seed{seed}"] for seed in SEEDS] for number, name in enumerate(SETTINGS[table])
    }


def _against(results: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    scores = [last_rounds(result) for result in results]
    mean, half = interval([a - last_rounds(b) for a, b in zip(scores, plain, strict=True)])
    return f"{100 * fmean(scores):.2f} %", "" if results is plain else f"{100 * mean:+.2f} ± {100 * half:.2f}"


def _delivered(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy of the int8 models and their size."""
    if results[0]["int8_accuracy"] is None:
        return ["none delivered", f"{fmean(r['model_bytes'] for r in results) / 1e3:.1f} kB"]
    accuracy = fmean(r["int8_accuracy"] for r in results)
    return [f"{100 * accuracy:.2f} %", f"{fmean(r['int8_model_bytes'] for r in results) / 1e3:.1f} kB"]


def bits_table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    rows = []
    for name, results in found.items():
        after = [result["also"][name] for result in found["float32"]] if name in BITS else []
        # Both are accuracies after the last round, since PTQ quantizes the final model.
        gains = [r["int8_accuracy"] - a for r, a in zip(results, after, strict=True)] if after else []
        after_text = f"{100 * fmean(after):.2f} %" if after else ""
        gain = "{:+.2f} ± {:.2f}".format(*(100 * x for x in interval(gains))) if gains else ""
        rows.append([name, *_against(results, found["float32"]), *_delivered(results), after_text, gain])
    header = ["cnn", "accuracy, last 5 rounds", "points to float32 (95 %)", "int8 model at the end", "its file"]
    return markdown_table([*header, "PTQ of float32", "QAT over PTQ (95 %)"], rows)


def sparse_table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    rows = []
    for name, results in found.items():
        dense = found[f"{name.partition(',')[0]}, dense"]
        sent = fmean(r["bytes_up"] + r["bytes_down"] for r in results)
        share = sent / fmean(r["bytes_up"] + r["bytes_down"] for r in dense)
        rows.append([name, *_against(results, dense), *_delivered(results), f"{100 * share:.0f} %"])
    header = ["model", "accuracy, last 5 rounds", "points to dense int8 (95 %)", "int8 model at the end", "its file"]
    return markdown_table([*header, "float32 packets, both ways"], rows)


def private_table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    rows = [
        [
            name,
            *_against(results, found["float32"]),
            *_delivered(results),
            f"{fmean(r['epsilon'] for r in results):.2f}",
        ]
        for name, results in found.items()
    ]
    header = ["mlp, DP", "accuracy, last 5 rounds", "points to DP float32 (95 %)", "int8 model at the end", "its file"]
    return markdown_table([*header, "epsilon, delta 1e-5"], rows)


TABLES = {"bits": bits_table, "sparse": sparse_table, "private": private_table}


def main() -> None:
    asked = [table for table in SETTINGS if table in sys.argv] or list(SETTINGS)
    for table in asked:
        text = TABLES[table](found_in(table))
        replace_table(DOCUMENT, f"quant_{table}", text)
        print(f"{text}\n")


if __name__ == "__main__":
    main()
