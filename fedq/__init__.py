"""fedq: federated quantized training. One config is one experiment; integers on the wire, DP that is accounted.

    import fedq
    result = fedq.run(["experiment=demo"])
    model = fedq.load(result.folder)

Names are loaded when they are first used, so that `import fedq` and `fedq --help` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "ConfigError": "fedq.config",
    "QuantizedFedAvg": "fedq.server",
    "Observer": "fedq.runtime",
    "Result": "fedq.results",
    "codec": "",
    "data": "",
    "load": "fedq.artifacts.loading",
    "quantize": "fedq.quant",
    "quantized_mod": "fedq.client.mod",
    "run": "fedq.console.live",
}
__all__ = [
    "ConfigError",
    "Observer",
    "QuantizedFedAvg",
    "Result",
    "__version__",
    "codec",
    "data",
    "load",
    "quantize",
    "quantized_mod",
    "run",
]

if TYPE_CHECKING:
    from fedq import codec, data
    from fedq.artifacts.loading import load
    from fedq.client.mod import quantized_mod
    from fedq.config import ConfigError
    from fedq.console.live import run
    from fedq.quant import quantize
    from fedq.results import Result
    from fedq.runtime import Observer
    from fedq.server import QuantizedFedAvg


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fedq' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = _LAZY[name]
    return getattr(import_module(home), name) if home else import_module(f"fedq.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
