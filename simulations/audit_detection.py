"""The planted bugs that `fedq audit` finds, for each mechanism: the table of docs/audit.md.

Each bug of tests/audit/bugs.py is planted into a small client and audited, with new coins and pairs each time. The
first column is the default mechanism: three audits of each bug, 20 of the right client. The others have one and five.

    python -m simulations.audit_detection            runs what is missing (minutes to hours), writes the table
    python -m simulations.audit_detection --table    writes it from the committed results
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from fedq.audit import Effort, workplace
from fedq.console import markdown_table, replace_table
from fedq.data import digits
from simulations.recipe import ROOT
from tests.audit.bugs import BUGS, NONE
from tests.audit.planted import SETTINGS, applies, audited

RESULTS, DOCUMENT = Path(__file__).parent / "results" / "audit_detection", ROOT / "docs" / "audit.md"
EFFORT = Effort(canaries=400, pairs=60)
SHOWN = [setting for setting in SETTINGS if SETTINGS[setting].sample_rate < 1]
DEFAULT = SHOWN[0]
NO_BUG = "none: the right mechanism"
# The claim is not made for sums of floats.
_NOT_CLAIMED = {("padding and probe removed", "gaussian")}


def main() -> None:
    torch.set_num_threads(1)
    examples, found = digits().train, {}
    with workplace() as folder:
        for setting, bug, seed in audits():
            path = RESULTS / setting.replace(", ", "-").replace(" ", "_") / f"{_file(bug)}-seed{seed}.json"
            if not path.is_file() and "--table" not in sys.argv:
                audit = audited(SETTINGS[setting], BUGS.get(bug, NONE), examples, folder, seed=seed, effort=EFFORT)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"findings": [check.name for check in audit.findings]}) + "\n")
                print(
                    f"{setting}: {bug}, seed {seed}: {', '.join(c.name for c in audit.findings) or 'nothing'}",
                    flush=True,
                )
            if path.is_file():
                found.setdefault((setting, bug), []).append(json.loads(path.read_text()))
    text = table(found)
    replace_table(DOCUMENT, "audit_detection", text)
    print(text)


def audits() -> list[tuple[str, str, int]]:
    """(setting, bug, seed) of each audit, the default mechanism first."""
    return [
        (setting, bug, seed)
        for setting in SHOWN
        for bug in (*BUGS, NO_BUG)
        if asked(bug, setting)
        for seed in range(1, _audits(bug, setting) + 1)
    ]


def _audits(bug: str, setting: str) -> int:
    if bug == NO_BUG:
        return 20 if setting == DEFAULT else 5
    return 3 if setting == DEFAULT else 1


def asked(bug: str, setting: str) -> bool:
    """Whether a bug applies to that setting; the default mechanism is audited with the model that a bug needs."""
    if (bug, setting) in _NOT_CLAIMED:
        return False
    return bug == NO_BUG or setting == DEFAULT or applies(BUGS[bug], SETTINGS[setting])


def table(found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    rows = [
        [bug, *(_cell(found.get((setting, bug), []), bug, setting) for setting in SHOWN)] for bug in (*BUGS, NO_BUG)
    ]
    return markdown_table(["planted bug", *SHOWN], rows)


def _cell(results: list[dict[str, Any]], bug: str, setting: str) -> str:
    """The number of audits with a finding."""
    if not asked(bug, setting):
        return "no bug here"
    if not results:
        return "not run"
    hits = [result["findings"] for result in results if result["findings"]]
    return f"{len(hits)} of {len(results)}"


def _file(bug: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in bug)


if __name__ == "__main__":
    main()
