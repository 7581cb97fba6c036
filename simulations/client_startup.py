"""The start-up time of a deployed client: the table of docs/deploy.md.

python -m simulations.client_startup            measures (python -m simulations.bench startup) and writes the table
python -m simulations.client_startup --table    writes it from the last measurement
"""

import json
import sys
from dataclasses import asdict

from fedq.console import markdown_table, replace_table
from simulations.bench.row import Row
from simulations.bench.timing import QUICK, machine, pin_threads
from simulations.recipe import RESULTS, ROOT

LABELS = {"client_startup": "privacy=off", "client_startup_dp": "privacy=example (imports Opacus)"}
PATH = RESULTS / "client_startup" / "result.json"


def main() -> None:
    if "--table" not in sys.argv:
        pin_threads()
        from simulations.bench.startup import rows

        kept = {"machine": machine().splitlines()[0], "rows": [asdict(row) for row in rows(QUICK)]}
        PATH.parent.mkdir(parents=True, exist_ok=True)
        PATH.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(PATH.read_text(encoding="utf-8"))
    body = []
    for row in (Row(**values) for values in kept["rows"]):
        body.append([LABELS[row.name], f"{row.ours:.1f} s", f"{row.reference:.1f} s", f"{row.ratio:.2f}"])
    header = ["one message", "fedq's client", "a plain Flower client with torch", "ratio"]
    table = markdown_table(header, body)
    replace_table(ROOT / "docs" / "deploy.md", "client_startup", f"{table}\n\n{kept['machine']}.")
    print(table)


if __name__ == "__main__":
    main()
