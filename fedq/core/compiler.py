"""Keep torch's compiler out of processes that never compile. Knows one import of torch.optim; not models or training.

Each optimizer of torch 2 imports `torch._dynamo` when it is made and when it steps, only to tell the compiler to leave
it alone. Where nothing is compiled that is a second of start-up for nothing, and a deployed client pays it for each
message.
"""

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_NAME = "torch._dynamo"


@contextmanager
def without_compiler() -> Iterator[None]:
    """Around the making and the steps of optimizers. Does nothing once the compiler is loaded.

    Nothing of a user's runs inside, so whoever does compile gets the real module.
    """
    if _NAME in sys.modules:
        yield
        return
    stand_in: Any = types.ModuleType(_NAME)
    stand_in.graph_break = lambda *args, **kwargs: None
    stand_in.disable = _disable
    sys.modules[_NAME] = torch._dynamo = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_NAME) is stand_in:
            del sys.modules[_NAME]
            del torch._dynamo


def _disable(function: Callable[..., Any], recursive: bool = True, **_: Any) -> Callable[..., Any]:
    """torch keeps what this returns for good, so it asks the real compiler as soon as there is one."""
    real: list[Callable[..., Any]] = []

    def called(*args: Any, **kwargs: Any) -> Any:
        loaded = sys.modules.get(_NAME)
        if not real and loaded is not None and hasattr(loaded, "OptimizedModule"):
            real.append(loaded.disable(function, recursive, wrapping=False))
        return (real[0] if real else function)(*args, **kwargs)

    return called
