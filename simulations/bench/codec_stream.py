"""One fresh server process: adds N packets as they come and says how much memory it took at most.

python -m simulations.bench.codec_stream N
"""

import resource
import sys

import numpy as np

from fedq.codec import Accumulator, Int8, Layout, encode
from simulations.bench.vectors import gaussian

SIZE = 1_000_000


def main(packets: int) -> None:
    layout = Layout.flat(SIZE)
    values, total = gaussian(SIZE), Accumulator(layout)
    for number in range(packets):
        # Another packet each time, as from another client; the last one is gone when the next comes.
        total.add(encode(np.roll(values, number), Int8(rounding="stochastic"), layout=layout, key=number))
    assert np.isfinite(total.mean()).all()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main(int(sys.argv[1]))
