"""Makes the peers' environments in .venv-peers, each with its pinned packages.

python -m simulations.baselines.install [pfl|flower]
"""

import argparse
import subprocess
import sys
from pathlib import Path

from simulations.bench.row import PeerAbsentError

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".venv-peers"
NAMES = ("pfl", "flower")


def python_of(name: str) -> str:
    """The interpreter of a peer's environment, which is made if it is missing or of other requirements.

    PeerAbsentError, with the command to run, if it cannot be made.
    """
    folder = ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    requirements = HERE / f"requirements-{name}.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != requirements.read_text(encoding="utf-8"):
        print(f"installing {name} into {folder}; this takes some minutes", file=sys.stderr, flush=True)
        _install(name, folder, [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"])
        stamp.write_text(requirements.read_text(encoding="utf-8"), encoding="utf-8")
    return str(python)


def _install(name: str, folder: Path, pip: list[str]) -> None:
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, stdout=sys.stderr)
        subprocess.run([*pip, "-r", str(HERE / f"requirements-{name}.txt")], check=True, stdout=sys.stderr)
    except (subprocess.CalledProcessError, OSError) as problem:
        raise PeerAbsentError(
            f"the peer {name} could not be installed ({problem}); its rows are left out. "
            f"Run: python -m simulations.baselines.install {name}"
        ) from problem


def main() -> int:
    """Exit status: 1 if an environment could not be made."""
    parser = argparse.ArgumentParser(prog="python -m simulations.baselines.install", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"one of: {', '.join(NAMES)}; all if none is given")
    names = parser.parse_args().names
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"NAME={unknown[0]}: must be one of {', '.join(NAMES)}")
    try:
        for name in names or NAMES:
            print(python_of(name))
    except PeerAbsentError as absent:
        print(absent, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
