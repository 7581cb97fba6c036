"""Tiny runs that several packages' tests use, named for what they are; threads, markers and garbage of all tests."""

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedq.results import Result, RoundRow

# Before torch is imported: each process of `make test` has one core, and sums of floats depend on the threads.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

# Every test in these folders runs a whole federation or a process of its own.
INTEGRATION = {"apps", "e2e", "new"}


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if INTEGRATION & set(item.path.relative_to(Path(__file__).parent).parts[:-1]):
            item.add_marker("integration")


def pytest_collection_finish() -> None:
    """8,000 tests and their libraries stay: a collection that looked at them again took a fifth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def four_rounds() -> list[RoundRow]:
    """A start, two good rounds around a skipped one, and a last round that lost two of ten clients."""
    bytes_ = {"bytes_up": 1_000, "bytes_down": 1_100, "float32_bytes_up": 4_000, "float32_bytes_down": 4_000}
    return [
        RoundRow(0, "initial", accuracy=0.1, loss=2.3, bytes_down=1_100, float32_bytes_down=4_000),
        RoundRow(1, "ok", accuracy=0.5, loss=1.2, epsilon=1.001, seconds=0.5, clients=10, **bytes_),
        RoundRow(2, "skipped", accuracy=0.5, loss=1.2, epsilon=2.0, lost=10, reasons={"late": 10}, **bytes_),
        RoundRow(3, "ok", accuracy=0.8, loss=0.7, epsilon=3.0, seconds=0.7, clients=10, **bytes_),
        RoundRow(4, "ok", accuracy=0.75, loss=0.8, epsilon=4.0, seconds=0.6, clients=8, lost=2,
                 reasons={"nonfinite": 1, "late": 1},
                 rejected=[{"client": "7", "reason": "nonfinite"}, {"client": "3", "reason": "late"}],
                 **bytes_),
    ]  # fmt: skip


@pytest.fixture
def make_result(four_rounds: list[RoundRow]) -> Callable[..., Result]:
    """The result of those rounds, with what a test wants to be different."""

    def make(**different: Any) -> Result:
        usual: dict[str, Any] = {
            "name": "demo", "status": "finished", "rounds": 4, "seed": 0, "wall_seconds": 41.3,
            "accuracy": 0.75, "accuracy_source": "server_test", "int8_accuracy": 0.7431,
            "int8_ops": {"QGemm": 2}, "float_ops": {"Tanh": 1},
            "epsilon": 4.0, "delta": 1e-5, "privacy_unit": "one example of one client", "private": True,
            "bytes_up": 4_000, "bytes_down": 5_500, "float32_bytes_up": 16_000, "float32_bytes_down": 20_000,
            "model_bytes": 20_000, "int8_model_bytes": 5_000, "clients_lost": 12, "history": four_rounds,
        }  # fmt: skip
        return Result(**(usual | different))

    return make
