"""Digests of the trained arrays of every experiment, to check that a change of the code changes no bit.

python -m simulations.digests record     runs each experiment for two rounds and writes the digests
python -m simulations.digests compare    runs them again; exit status 1 if one differs
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import fedq

# Compiled clipping rounds the norm of a per-example gradient otherwise, in the last bits, and is used where numba is.
os.environ["FEDQ_JIT"] = "0"

RECORDED = Path(__file__).resolve().parent / "results" / "digests.json"
# Privacy is off or its noise is seeded, because secret noise never repeats.
SEEDED = ["privacy.noise=seeded"]
RUNS = {
    "cross_device": ["experiment=cross_device", "codec=sign", "codec.rotate=true", "downlink.name=int4"],
    "cross_silo": [
        "experiment=cross_silo",
        "codec=int2",
        "codec.error_feedback=true",
        "downlink.name=int2",
        "downlink.kind=delta",
    ],
    "demo": ["experiment=demo", *SEEDED],
    "demo, privacy off": ["experiment=demo", "privacy=off"],
    "demo, two workers": ["experiment=demo", "privacy=off", "runtime.workers=2"],
    "demo, sparse": ["experiment=demo", "privacy=off", "quant.sparsity=0.5", "rounds=4"],
    "demo, adam at the server": ["experiment=demo", "privacy=off", "strategy=fedadam"],
    "fashion_mnist": ["experiment=fashion_mnist", "quant=int8", "codec=int8"],
    "private_devices": ["experiment=private_devices", *SEEDED],
    "private_fashion": ["experiment=private_fashion", *SEEDED],
    "private_silo": ["experiment=private_silo", *SEEDED],
}
SHORT = ["rounds=2", "strategy.evaluate_every=2"]


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of names, shapes, dtypes and bytes, in the order of names."""
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        hasher.update(f"{name} {array.dtype.str} {array.shape};".encode() + array.tobytes())
    return hasher.hexdigest()[:32]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "compare"])
    what = parser.parse_args().what
    recorded = json.loads(RECORDED.read_text()) if what == "compare" else {}
    found, differ = {}, []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, overrides in RUNS.items():
            result = fedq.run([*SHORT, *overrides], progress=False)
            found[name] = digest(result.arrays)
            differs = recorded.get(name, found[name]) != found[name]
            differ += [name] if differs else []
            print(f"{'differs ' if differs else ''}{name}: {found[name]}", flush=True)
    if what == "record":
        RECORDED.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
