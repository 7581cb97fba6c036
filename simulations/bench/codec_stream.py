"""One fresh server process: adds N packets as they come and says how much memory it took at most.

python -m simulations.bench.codec_stream N
"""

import resource
import sys
from pathlib import Path

import numpy as np

from fedq.codec import Accumulator, Int8, Layout, encode, jit

SIZE = 1_000_000


def main(packets: int) -> None:
    jit.load()  # as a server of many packets has them, also where only ten come
    layout = Layout.flat(SIZE)
    values = np.random.default_rng(0).standard_normal(SIZE, dtype=np.float32)
    total = Accumulator(layout)
    for number in range(packets):
        # Another packet each time, as from another client; the last one is gone when the next comes.
        total.add(encode(np.roll(values, number), Int8(rounding="stochastic"), layout=layout, key=number))
    assert np.isfinite(total.mean()).all()
    print(peak_kilobytes())


def peak_kilobytes() -> int:
    """Of this process alone: ru_maxrss of a process that was just started is that of its parent, if that is larger."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(int(sys.argv[1]))
