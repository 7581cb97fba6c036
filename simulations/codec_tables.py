"""Bits, errors and speed of each codec: the tables of docs/codecs.md.

python -m simulations.codec_tables           bits and errors of every codec, then `simulations.bench codec` (1 minute)
"""

import json
import subprocess
import sys

import numpy as np

from fedq.codec import Codec, Float16, Int2, Int4, Int8, Layout, RandK, Sign, TopK, decode, encode
from fedq.console import markdown_table, replace_table
from simulations.bench.vectors import gaussian, real_update
from simulations.recipe import ROOT

DOCUMENT = ROOT / "docs" / "codecs.md"
CODECS: dict[str, Codec] = {
    "float16": Float16(),
    "int8": Int8(),
    "int8, stochastic": Int8(rounding="stochastic"),
    "int8, entropy": Int8(entropy=True),
    "int4": Int4(),
    "int4, entropy": Int4(entropy=True),
    "int4, rotate": Int4(rotate=True),
    "int2": Int2(),
    "int2, block 256, entropy": Int2(block=256, entropy=True),
    "int2, block 1024, entropy": Int2(entropy=True),
    "int2, stochastic": Int2(rounding="stochastic"),
    "int2, rotate": Int2(rotate=True),
    "int2, rotate, feedback": Int2(rotate=True, error_feedback=True),
    "sign": Sign(),
    "sign, rotate": Sign(rotate=True),
    "sign, rotate, feedback": Sign(rotate=True, error_feedback=True),
    "topk, 10 %": TopK(0.1),
    "topk, 1 %": TopK(0.01),
    "randk, 10 %": RandK(0.1),
    "randk, 10 %, feedback": RandK(0.1, error_feedback=True),
}


def losses() -> str:
    """Bits for each parameter and normalized mean squared error, on Gaussian values and on a real update."""
    layout, update, _ = real_update()
    values, flat = gaussian(2**18), Layout.flat(2**18)
    rows = []
    for name, codec in CODECS.items():
        bits, error = _cost(values, codec, flat)
        real_bits, real_error = _cost(update, codec, layout)
        rows.append([name, f"{bits:.2f}", f"{error:.3g}", f"{real_bits:.2f}", f"{real_error:.3g}"])
    header = ["codec", "bits, Gaussian", "NMSE, Gaussian", "bits, real update", "NMSE, real update"]
    return markdown_table(header, rows)


def _cost(vector: np.ndarray, codec: Codec, layout: Layout) -> tuple[float, float]:
    """(bits of the packet for each value, |decoded - x|^2 / |x|^2), the mean of 4 keys."""
    x = vector.astype(np.float64)
    packets = [encode(vector, codec, layout=layout, key=key) for key in range(4)]
    errors = [np.sum((decode(packet, layout) - x) ** 2) for packet in packets]
    return 8 * len(packets[0]) / x.size, float(np.mean(errors) / np.sum(x * x))


def speeds() -> str:
    """The output of `simulations.bench codec` on this machine."""
    command = [sys.executable, "-m", "simulations.bench", "codec", "--json"]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    cells = [[r["name"], f"{r['ours']:.4g}", f"{r['reference']:.4g}", r["unit"], f"{r['ratio']:.3g}"] for r in rows]
    about = done.stderr.strip().splitlines()[0]
    return f"On {about}.\n\n" + markdown_table(["line", "ours", "reference", "unit", "ratio"], cells)


def main() -> None:
    for name, written in (("codec_losses", losses()), ("codec_bench", speeds())):
        replace_table(DOCUMENT, name, written)
        print(written, end="\n\n")


if __name__ == "__main__":
    main()
