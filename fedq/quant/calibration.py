"""Replace dynamic grids by fixed ranges from public inputs. Depends on quantized models and tensors; not on data.

This also quantizes a trained float model after the training (PTQ): `quantize(model, ranges="dynamic")`, then
`with_fixed_ranges` with some inputs.
"""

import copy

import torch
from torch import Tensor, nn

from fedq.quant.grids import DynamicGrid, FixedGrid
from fedq.quant.layers import QuantizedLayer

_BATCH = 256


def with_fixed_ranges(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy of `model` in evaluation mode; each dynamic grid is fixed at the largest value that it sees in `inputs`.

    The extremes of `inputs` (n, ...) become part of the exported model: the inputs must be public, since the model's
    privacy guarantee does not cover them. ValueError for inputs that are empty or not finite.
    """
    if not len(inputs) or (inputs.is_floating_point() and not torch.isfinite(inputs).all()):
        raise ValueError(f"calibration: {len(inputs)} inputs, or some hold NaN or infinity; give finite public inputs")
    fixed = copy.deepcopy(model).eval()
    grids = [module for module in fixed.modules() if isinstance(module, DynamicGrid)]
    for grid in grids:
        grid.seen = 0.0
    with torch.no_grad():
        for start in range(0, len(inputs), _BATCH):
            fixed(inputs[start : start + _BATCH].to(next(fixed.parameters()).device))
    made = {id(grid): FixedGrid(grid.seen or grid.limit, signed=grid.signed, bits=grid.bits) for grid in grids}
    for module in list(fixed.modules()):
        for name, child in list(module.named_children()):
            if id(child) in made:
                setattr(module, name, made[id(child)])
    for module in fixed.modules():
        if isinstance(module, QuantizedLayer) and module.source is not None:
            module.source = (made.get(id(module.source[0]), module.source[0]),)
    return fixed
