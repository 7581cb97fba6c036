"""Which options of quantization go together. Knows the schema; not layers or files."""

from collections.abc import Iterator, Sequence

from fedq.config.schema import Config


def idle_quantization(config: Config) -> Iterator[tuple[Sequence[str], bool, str, str]]:
    """Options that do nothing beside others: (keys, whether they apply, why not, the fix)."""
    q = config.quant
    levels = f"quant.weight_bits={q.weight_bits} has levels of its own"
    yield ("quant.weight_range",), q.weight_bits == 8, levels, "Use quant.weight_bits=8"
    ternary = "ternary weights go by a threshold, none is rounded"
    yield ("quant.weight_rounding",), q.weight_bits != 2, ternary, "Use quant.weight_bits=4"
    known = f"quant.activations={q.activations} has its ranges by itself"
    yield ("quant.calibration",), q.activations == "dynamic", known, "Use quant.activations=dynamic"
    floats = "quant.activations=off leaves them in float"
    keys = ("quant.activation_bits", "quant.activation_range", "quant.input_range")
    yield keys, q.activations != "off", floats, "Use quant.activations=fixed"
