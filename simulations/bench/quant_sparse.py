"""From which density a sparse layer is faster than the dense int8 one: real kernels, one layer. Needs no data set."""

import math
import time
import warnings
from collections.abc import Callable, Iterator

import numba
import numpy as np
import torch
from scipy import sparse

from simulations.bench.quant_int8 import session
from simulations.bench.row import Row
from simulations.bench.timing import Contender, Effort, medians

SIDE, BATCH = 512, 64
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)
_SHORTEST = 0.01  # seconds of one timing, at least


def rows(effort: Effort) -> Iterator[Row]:
    paying: list[float] = []
    for density in DENSITIES:
        contenders = kernels(density)
        ms = {name: 1e3 * taken for name, taken in _timed(contenders, effort).items()}
        dense = ms.pop("dense int8")
        best = min(ms, key=lambda name: ms[name])
        if ms[best] < dense:
            paying.append(density)
        each = ", ".join(f"{name} {taken:.3g} ms" for name, taken in ms.items())
        words = (
            f"{SIDE}x{SIDE} layer, batch {BATCH}, one thread: onnxruntime's dense MatMulInteger over the best sparse "
            f"kernel, {best} ({each})"
        )
        if density == DENSITIES[-1]:
            words += f"; sparse pays from a density of {max(paying):.0%} down" if paying else "; sparse pays nowhere"
        yield Row(f"sparse_int8_density{100 * density:02.0f}", ms[best], dense, "ms", "reference/ours", words)


def kernels(density: float) -> dict[str, Callable[[], np.ndarray]]:
    """Name -> the product of an int8 layer of that density and a batch, (SIDE, BATCH) or (BATCH, SIDE)."""
    random = np.random.default_rng(0)
    weights = random.integers(1, 64, (SIDE, SIDE)) * random.choice([-1, 1], (SIDE, SIDE))
    weights = np.where(random.random((SIDE, SIDE)) < density, weights, 0).astype(np.int8)
    inputs = random.integers(-128, 128, (SIDE, BATCH)).astype(np.int8)
    packed = sparse.csr_matrix(weights)
    sums = np.empty((SIDE, BATCH), np.int32)
    floats, float_inputs = packed.astype(np.float32), inputs.astype(np.float32)
    found: dict[str, Callable[[], np.ndarray]] = {"dense int8": _dense(weights, inputs)}

    def compiled() -> np.ndarray:
        csr_product(packed.indptr, packed.indices, packed.data, inputs, sums)
        return sums

    found["numba CSR int8"] = compiled
    found["scipy CSR float32"] = lambda: floats @ float_inputs
    parts = (torch.from_numpy(part) for part in (floats.indptr, floats.indices, floats.data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own CSR tensors a beta feature
        csr = torch.sparse_csr_tensor(*parts, floats.shape, check_invariants=True)
    batch = torch.from_numpy(float_inputs)
    try:
        csr @ batch
    except RuntimeError:  # torch without MKL has no such product
        return found
    found["torch CSR float32"] = lambda: (csr @ batch).numpy()
    return found


@numba.njit(cache=False)
def csr_product(
    starts: np.ndarray, columns: np.ndarray, values: np.ndarray, inputs: np.ndarray, sums: np.ndarray
) -> None:
    """int8 rows of a CSR matrix times int8 columns, in int32: vectors run over the batch, four weights at a time."""
    for row in range(len(starts) - 1):
        total = sums[row]
        total[:] = 0
        at, end = starts[row], starts[row + 1]
        while at + 4 <= end:
            a, b, c, d = (
                inputs[columns[at]], inputs[columns[at + 1]], inputs[columns[at + 2]], inputs[columns[at + 3]]
            )  # fmt: skip
            w, x, y, z = (
                np.int32(values[at]), np.int32(values[at + 1]), np.int32(values[at + 2]), np.int32(values[at + 3])
            )  # fmt: skip
            for i in range(len(total)):
                total[i] += w * np.int32(a[i]) + x * np.int32(b[i]) + y * np.int32(c[i]) + z * np.int32(d[i])
            at += 4
        while at < end:
            w, a = np.int32(values[at]), inputs[columns[at]]
            for i in range(len(total)):
                total[i] += w * np.int32(a[i])
            at += 1


def _dense(weights: np.ndarray, inputs: np.ndarray) -> Callable[[], np.ndarray]:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["input", "weight", "zero"], ["output"])],
        "dense",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, [BATCH, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.INT32, [BATCH, SIDE])],
        [
            numpy_helper.from_array(np.ascontiguousarray(weights.T), "weight"),
            numpy_helper.from_array(np.array(128, np.uint8), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    ran = session(model.SerializeToString())
    feed = {"input": np.ascontiguousarray((inputs.astype(np.int16) + 128).astype(np.uint8).T)}
    return lambda: ran.run(None, feed)[0]


def _timed(products: dict[str, Callable[[], np.ndarray]], effort: Effort) -> dict[str, float]:
    def calls(product: Callable[[], np.ndarray]) -> Contender:
        product()
        once = min(_seconds(product, 1) for _ in range(3))
        return lambda: _seconds(product, math.ceil(_SHORTEST / once))

    return medians({name: calls(product) for name, product in products.items()}, repeats=3 * effort.repeats)


def _seconds(product: Callable[[], np.ndarray], times: int) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        product()
    return (time.perf_counter() - begun) / times
