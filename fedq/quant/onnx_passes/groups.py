"""Compute GroupNorm's scale and shift in one operator. Depends on ONNX."""

from fedq.quant.onnx_passes.graph import Graph


def scale_and_shift_at_once(graph: Graph) -> None:
    """Replace a product and a sum per channel after a normalisation by a BatchNormalization of mean 0 and variance 1.

    Two passes over the floats become one. Its epsilon is 0, so the scale does not change; at most the last bit of a
    float differs, on a processor that multiplies and adds in one step.
    """
    for scale in graph.each("Mul"):
        shift = graph.only_reader(scale.output[0], "Add")
        reshape = graph.maker(scale.input[0], "Reshape")
        if shift is None or reshape is None or graph.maker(reshape.input[0], "InstanceNormalization") is None:
            continue
        factors, terms, shape = graph.array(scale.input[1]), graph.array(shift.input[1]), graph.shape(scale.input[0])
        if factors is None or terms is None or shape is None or len(shape) < 3 or shape[1] is None:
            continue
        channels, per_channel = shape[1], (shape[1], *[1] * (len(shape) - 2))
        if not factors.shape == terms.shape == per_channel:
            continue
        moments = graph.filled(channels, 0), graph.filled(channels, 1)
        both = graph.constant(factors.ravel()), graph.constant(terms.ravel())
        at_once = graph.node("BatchNormalization", scale.input[0], *both, *moments, to=shift.output[0], epsilon=0.0)
        graph.replace(shift, [at_once])
