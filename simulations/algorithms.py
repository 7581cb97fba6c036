"""FedAvg, FedProx and SCAFFOLD on Fashion-MNIST split by Dirichlet 0.1, int8 both ways, paired over 3 seeds.

100 clients, 10 a round, the tanh CNN, privacy off. A pair shares partition, sampling and initialisation; the figure is
the mean accuracy of the last 5 rounds.

    python -m simulations.algorithms            runs what is missing (2 to 4 minutes a run), writes docs/results.md
    python -m simulations.algorithms --table    writes the table from the committed results
"""

from statistics import fmean

from fedq.console import markdown_table, replace_table
from simulations.recipe import ROOT, interval, last_rounds, outcomes

SEEDS = range(3)
SETTINGS = {
    "FedAvg": ["algorithm=fedavg"],
    "FedProx, mu 0.01": ["algorithm=fedprox"],
    "SCAFFOLD": ["algorithm=scaffold"],
}
COMMON = ["experiment=fashion_mnist", "partition.alpha=0.1", "codec=int8", "strategy.evaluate_every=10"]


def runs() -> dict[str, list[str]]:
    """Label -> overrides, ordered by seed, so that an interrupted recipe leaves complete pairs."""
    return {
        f"setting{number}-seed{seed}": [*COMMON, *overrides, f"seed={seed}"]
        for seed in SEEDS
        for number, overrides in enumerate(SETTINGS.values())
    }


def main() -> None:
    found = outcomes("algorithms", runs())
    scores = [[last_rounds(found[f"setting{n}-seed{s}"]) for s in SEEDS] for n in range(len(SETTINGS))]
    rows = []
    for number, name in enumerate(SETTINGS):
        results = [found[f"setting{number}-seed{seed}"] for seed in SEEDS]
        sent = fmean(r["bytes_up"] + r["bytes_down"] for r in results)
        mean, half = interval([a - b for a, b in zip(scores[number], scores[0], strict=True)])
        rows.append(
            [
                name,
                f"{100 * fmean(scores[number]):.2f} %",
                "" if number == 0 else f"{100 * mean:+.2f} ± {100 * half:.2f} points",
                f"{sent / 1e6:.1f} MB",
            ]
        )
    header = [
        "Dirichlet 0.1, mean of 3 seeds",
        "accuracy, last 5 rounds",
        "difference to FedAvg (95 %)",
        "bytes, both ways",
    ]
    table = markdown_table(header, rows)
    replace_table(ROOT / "docs" / "results.md", "algorithms", table)
    print(table)


if __name__ == "__main__":
    main()
