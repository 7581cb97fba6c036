"""int8 QAT with int8 packets both ways against float32 FedAvg on Fashion-MNIST, paired over 3 seeds.

100 clients, Dirichlet 0.5, 10 a round, the tanh CNN, privacy off. A pair shares partition, sampling and
initialisation; the figure is the mean accuracy of the last 5 rounds.

    python -m simulations.fashion_mnist            runs what is missing (3 minutes a run), writes docs/results.md
    python -m simulations.fashion_mnist --table    writes the table from the committed results
"""

from statistics import fmean

from fedq.console import markdown_table, replace_table
from simulations.recipe import ROOT, interval, last_rounds, outcomes

SEEDS = range(3)
SETTINGS = {"float32 FedAvg": [], "W8A8 QAT, int8 both ways": ["quant=int8", "codec=int8"]}
COMMON = ["experiment=fashion_mnist", "strategy.evaluate_every=10"]


def runs() -> dict[str, list[str]]:
    """Label -> overrides, pair by pair, so that an interrupted recipe leaves complete pairs."""
    return {
        f"setting{number}-seed{seed}": [*COMMON, *overrides, f"seed={seed}"]
        for seed in SEEDS
        for number, overrides in enumerate(SETTINGS.values())
    }


def main() -> None:
    found = outcomes("fashion_mnist", runs())
    scores = [[last_rounds(found[f"setting{n}-seed{s}"]) for s in SEEDS] for n in range(len(SETTINGS))]
    rows = []
    for number, name in enumerate(SETTINGS):
        results = [found[f"setting{number}-seed{seed}"] for seed in SEEDS]
        sent = fmean(r["bytes_up"] + r["bytes_down"] for r in results)
        plain = fmean(r["float32_bytes_up"] + r["float32_bytes_down"] for r in results)
        int8 = [r["int8_accuracy"] for r in results if r["int8_accuracy"] is not None]
        mean, half = interval([a - b for a, b in zip(scores[number], scores[0], strict=True)])
        rows.append(
            [
                name,
                f"{100 * fmean(scores[number]):.2f} %",
                "" if number == 0 else f"{100 * mean:+.2f} ± {100 * half:.2f} points",
                f"{100 * fmean(int8):.2f} %" if int8 else "none delivered",
                f"{sent / 1e6:.1f} MB ({100 * sent / plain:.2f} %)",
            ]
        )
    header = [
        "Fashion-MNIST, mean of 3 seeds",
        "accuracy, last 5 rounds",
        "paired difference (95 %)",
        "int8 model at the end",
        "bytes, both ways",
    ]
    replace_table(ROOT / "docs" / "results.md", "fashion_mnist", markdown_table(header, rows))
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
