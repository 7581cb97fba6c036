"""Every example's gradient from one backward pass over the batch. Knows torch layers; not clipping, noise or budgets.

Layers of the kinds in `layers.SAMPLERS` are recorded (what went in, and the gradient of what came out); all others are
left to Opacus' hooks. See `recording`.
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
