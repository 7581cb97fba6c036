"""Per-example gradients of a batch from one backward pass. Depends on torch layers; not on clipping, noise or budgets.

Layers of the types in `layers.SAMPLERS` are recorded: their input and the gradient of their output. All other layers
use Opacus' hooks. See `recording`.
"""

from fedq.per_example.contributions import Contribution, Dense, Outer, averaged
from fedq.per_example.layers import ALIGNED, SAMPLERS, register
from fedq.per_example.recording import Recorder, left_to_opacus, recorded

__all__ = [
    "ALIGNED",
    "SAMPLERS",
    "Contribution",
    "Dense",
    "Outer",
    "Recorder",
    "averaged",
    "left_to_opacus",
    "recorded",
    "register",
]
