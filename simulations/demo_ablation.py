"""The accuracy cost of each part of the demo: float32 FedAvg, then QAT, then int8 packets, then DP, over 5 seeds.

python -m simulations.demo_ablation            runs what is missing, writes the table of README.md
python -m simulations.demo_ablation --table    writes the table from the committed results
"""

from statistics import fmean

from fedq.console import markdown_table, replace_table
from simulations.recipe import ROOT, outcomes

SEEDS = range(5)
WEIGHED = "strategy.weighting=examples"  # FedAvg as published; the demo itself weights all clients equally
STEPS = {
    "float32 FedAvg": ["quant=off", "codec=float32", "privacy=off", WEIGHED],
    "+ W8A8 QAT": ["codec=float32", "privacy=off", WEIGHED],
    "+ int8 packets, both ways": ["privacy=off", WEIGHED],
    "+ DP-SGD, epsilon 8 (the demo)": [],
}


def runs() -> dict[str, list[str]]:
    """Label -> overrides of a run."""
    return {
        f"step{step}-seed{seed}": ["experiment=demo", *overrides, f"seed={seed}"]
        for step, overrides in enumerate(STEPS.values())
        for seed in SEEDS
    }


def main() -> None:
    found = outcomes("demo_ablation", runs())
    rows = []
    for step, name in enumerate(STEPS):
        of_step = [found[f"step{step}-seed{seed}"] for seed in SEEDS]
        accuracies = [r["accuracy"] for r in of_step]
        int8 = [r["int8_accuracy"] for r in of_step if r["int8_accuracy"] is not None]
        sent = fmean(r["bytes_up"] + r["bytes_down"] for r in of_step)
        plain = fmean(r["float32_bytes_up"] + r["float32_bytes_down"] for r in of_step)
        epsilon = max((r["epsilon"] for r in of_step if r["epsilon"] is not None), default=None)
        rows.append(
            [
                name,
                f"{100 * fmean(accuracies):.1f} % ({100 * min(accuracies):.1f} to {100 * max(accuracies):.1f})",
                f"{100 * fmean(int8):.1f} %" if int8 else "none delivered",
                f"{sent / 1e6:.2f} MB ({100 * sent / plain:.1f} %)",
                "off" if epsilon is None else f"{epsilon:.2f}",
            ]
        )
    delta = {r["delta"] for r in found.values() if r["delta"] is not None}.pop()
    header = [
        "demo, mean of 5 seeds (range)",
        "accuracy",
        "int8 model",
        "bytes, both ways",
        f"epsilon, delta {delta:g}",
    ]
    replace_table(ROOT / "README.md", "demo_ablation", markdown_table(header, rows))
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
