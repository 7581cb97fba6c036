"""Makes the peers' environments in .venv-peers, each with its pinned packages.

python -m simulations.baselines.install [pfl|flower]
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".venv-peers"
NAMES = ("pfl", "flower")


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    stamp, requirements = folder / ".installed", HERE / f"requirements-{name}.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "-r", str(requirements)], check=True, stdout=sys.stderr)
        stamp.write_text(requirements.read_text())
    return python


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NAMES:
        python_of(wanted)
