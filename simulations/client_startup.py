"""The time that a message costs a deployed client beside its training: the table of docs/deploy.md.

python -m simulations.client_startup            measures (simulations.bench, startup and deployed) and writes the table
python -m simulations.client_startup --table    writes it from the last measurement
"""

import json
import sys
from dataclasses import asdict

from fedq.console import markdown_table, replace_table
from simulations.bench.row import Row
from simulations.bench.timing import QUICK, machine, pin_threads
from simulations.recipe import RESULTS, ROOT

LABELS = {
    "client_startup": "a fresh process, `privacy=off`",
    "client_startup_dp": "a fresh process, `privacy=example` (imports Opacus)",
    "deployed_message_supernode": "warm, under `flower-supernode`, `privacy=off`",
    "deployed_message_supernode_dp": "warm, under `flower-supernode`, `privacy=example`",
    "deployed_message": "warm, under `fedq client node`, `privacy=off`",
    "deployed_message_dp": "warm, under `fedq client node`, `privacy=example`",
}
PATH = RESULTS / "client_startup" / "result.json"


def main() -> None:
    if "--table" not in sys.argv:
        pin_threads()
        from simulations.bench import deployed, startup

        rows = [*startup.rows(QUICK), *deployed.rows(QUICK)]
        kept = {"machine": machine().splitlines()[0], "rows": [asdict(row) for row in rows]}
        PATH.parent.mkdir(parents=True, exist_ok=True)
        PATH.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(PATH.read_text(encoding="utf-8"))
    body = []
    found = {values["name"]: Row(**values) for values in kept["rows"]}
    for row in (found[name] for name in LABELS if name in found):
        body.append([LABELS[row.name], f"{row.ours:.1f} s", f"{row.reference:.1f} s", f"{row.ratio:.2f}"])
    header = ["one message", "fedq's client", "a plain Flower client with torch", "ratio"]
    table = markdown_table(header, body)
    replace_table(ROOT / "docs" / "deploy.md", "client_startup", f"{table}\n\n{kept['machine']}.")
    print(table)


if __name__ == "__main__":
    main()
