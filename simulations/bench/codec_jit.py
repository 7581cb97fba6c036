"""A fresh process: how long its kernels take to be ready, compiled or read from numba's cache. Prints seconds.

python -m simulations.bench.codec_jit
"""

import time

from fedq.codec import jit


def main() -> None:
    begun = time.perf_counter()
    kernels = jit.load()
    if kernels is None:
        raise SystemExit("numba does not work here")
    for name in kernels.__all__:
        getattr(kernels, name).compile()
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    main()
