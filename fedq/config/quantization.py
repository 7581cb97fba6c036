"""Rules about quantization options. Knows the schema; not layers or files."""

from collections.abc import Iterator, Sequence

from fedq.config.schema import Config


def idle_quantization(config: Config) -> Iterator[tuple[Sequence[str], bool, str, str]]:
    """Options without effect beside others: (keys, whether they apply, why not, the fix)."""
    q = config.quant
    levels = f"quant.weight_bits={q.weight_bits} has levels of its own"
    yield ("quant.weight_range",), q.weight_bits == 8, levels, "Use quant.weight_bits=8"
    ternary = "ternary weights are set by a threshold, not rounded"
    yield ("quant.weight_rounding",), q.weight_bits != 2, ternary, "Use quant.weight_bits=4"
    known = f"quant.activations={q.activations} needs no calibration file for its ranges"
    yield ("quant.calibration",), q.activations == "dynamic", known, "Use quant.activations=dynamic"
    floats = "quant.activations=off leaves them in float"
    keys = ("quant.activation_bits", "quant.activation_range", "quant.input_range")
    yield keys, q.activations != "off", floats, "Use quant.activations=fixed"
