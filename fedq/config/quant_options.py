"""The options of quantization-aware training. Knows how options are declared; no rules."""

from dataclasses import dataclass

from fedq.config.option import When, option

_QUANTIZED = When("quant.name", unless=("off",), why="quant is off, so it would do nothing", fix="Add quant=int8")
_QUANTIZED_ACTIVATIONS = When(
    "quant.activations",
    unless=("off",),
    why="quant.activations=off leaves them in float",
    fix="Use quant.activations=fixed",
)
_SPARSE = When(
    "quant.sparsity",
    unless=(None,),
    why="quant.sparsity is null, so it would do nothing",
    fix="Add quant.sparsity=0.9",
)


@dataclass
class Quant:
    name: str = option("off", "quantization-aware training", choices=("off", "int8", "int4", "ternary"))
    weight_bits: int = option(8, "bits of a weight; 2 is ternary: -1, 0, 1", choices=(8, 4, 2), when=_QUANTIZED)
    granularity: str = option(
        "channel",
        "values that share one weight step: an output channel or the tensor",
        choices=("channel", "tensor"),
        when=_QUANTIZED,
    )
    weight_rounding: str = option(
        "nearest",
        "rounding of weights in training (the delivered ones: nearest)",
        choices=("nearest", "stochastic"),
        when=(
            _QUANTIZED,
            When(
                "quant.weight_bits",
                unless=(2,),
                why="ternary weights are set by a threshold, not rounded",
                fix="Use quant.weight_bits=4",
            ),
        ),
    )
    activation_bits: int = option(8, "bits of an activation", choices=(8, 4), when=(_QUANTIZED, _QUANTIZED_ACTIVATIONS))
    activations: str = option(
        "fixed",
        "activation ranges; observed is refused under DP, dynamic is for training only",
        choices=("fixed", "learned", "observed", "dynamic", "off"),
        when=_QUANTIZED,
    )
    weight_range: int | None = option(
        None,
        "largest 8-bit weight level; null: 63, exact on every CPU (127 only with VNNI or ARM)",
        bounds="[1, 127]",
        when=(
            _QUANTIZED,
            When("quant.weight_bits", (8,), why="quant.weight_bits={value} has levels of its own"),
        ),
    )
    activation_range: float = option(
        8.0,
        "fixed (or first) range of activations without a natural bound",
        bounds="(0, inf)",
        when=(_QUANTIZED, _QUANTIZED_ACTIVATIONS),
    )
    input_range: float = option(
        4.0, "fixed range of the model's input", bounds="(0, inf)", when=(_QUANTIZED, _QUANTIZED_ACTIVATIONS)
    )
    calibration: str | None = option(
        None,
        ".npy file of public inputs that give the export its ranges",
        when=(
            _QUANTIZED,
            When(
                "quant.activations",
                ("dynamic",),
                why="quant.activations={value} needs no calibration file for its ranges",
            ),
        ),
        holds="path",
    )
    skip: list[str] = option([], "name patterns of layers that stay float", when=_QUANTIZED)
    sparsity: float | None = option(
        None, "target share of zeros among all large weights; null: dense", bounds="(0, 1)", when=_QUANTIZED
    )
    sparsity_begin: float = option(
        0.1, "share of the rounds after which pruning begins", bounds="[0, 1]", when=(_QUANTIZED, _SPARSE)
    )
    sparsity_end: float = option(
        0.6,
        "share of the rounds after which the sparsity is reached",
        bounds="[0, 1]",
        when=(_QUANTIZED, _SPARSE),
    )
