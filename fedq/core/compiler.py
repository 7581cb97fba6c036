"""Keep torch's compiler out of processes that never compile. Depends on one import of torch.optim.

Each optimizer of torch 2 imports `torch._dynamo` when it is created and when it steps, only to exclude itself from
compilation. Where nothing is compiled, this is a second of start-up without a use, and a deployed client pays it for
each message.
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
    """Use this around the creation and the steps of optimizers. It does nothing once the compiler is loaded.

    No user code runs inside, so code that does compile gets the real module.
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


def run_eagerly(function: Any) -> None:
    """Mark a function that torch excludes from compilation as excluded already.

    torch wraps such a function, e.g. `__torch_dispatch__`, and imports the compiler at its first call to exclude it.
    It keeps the result in this attribute of the function, so the import is not needed.
    """
    wrapped = function.__wrapped__
    setattr(wrapped, "__dynamo_disable", wrapped)


def _disable(function: Callable[..., Any], recursive: bool = True, **_: Any) -> Callable[..., Any]:
    """torch keeps this result permanently, so it calls the real compiler as soon as there is one."""
    real: list[Callable[..., Any]] = []

    def called(*args: Any, **kwargs: Any) -> Any:
        loaded = sys.modules.get(_NAME)
        if not real and loaded is not None and hasattr(loaded, "OptimizedModule"):
            real.append(loaded.disable(function, recursive, wrapping=False))
        return (real[0] if real else function)(*args, **kwargs)

    return called
