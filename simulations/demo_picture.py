"""The final report and the curves of the demo, for docs/results.md.

python -m simulations.demo_picture     runs the demo once, writes docs/results.md and docs/images/demo.png
"""

import io
import os

from rich.console import Console

import fedq
from fedq.console import final_table, known_costs, replace_table
from fedq.results import save_curves
from simulations.recipe import RESULTS, ROOT

OVERRIDES = ["experiment=demo"]


def main() -> None:
    os.chdir(ROOT)
    result = fedq.run(OVERRIDES)
    screen = io.StringIO()
    table = final_table(result, known_costs(result, [RESULTS]), overrides=OVERRIDES)
    Console(file=screen, width=100, highlight=False, color_system=None).print(table)
    text = "\n".join(line.rstrip() for line in screen.getvalue().strip("\n").splitlines())
    replace_table(ROOT / "docs" / "results.md", "demo_run", f"```text\n{text}\n```")
    save_curves(result, ROOT / "docs" / "images" / "demo.png")
    print(text)


if __name__ == "__main__":
    main()
