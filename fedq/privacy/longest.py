"""How long an update of DP-SGD is at most, but for a small chance: by public numbers alone. Knows plans; not tensors.

With plain SGD an update is minus lr times a weighted sum of the noised gradients g_t of the round's S steps, where
momentum mu gives g_t the weight c_t = 1 + mu + ... + mu^(S-t) (without momentum 1). Two parts, each bounded but for a
chance of `FAILURE`, are added by the triangle inequality:

- The clipped gradients. Each drawn example gives at most clip_norm, over the divisor q N. How many are drawn of N
  examples, weighted by c_t, is bounded by Bernstein's inequality.
- The noise. Its sum has standard deviation s = sigma clip_norm / (q N) sqrt(sum c_t^2) in each of d coordinates, and
  the norm of d such values (Gaussian, or subgaussian as discrete Gaussian noise is) is at most s (sqrt(d) + sqrt(2 L))
  with L = ln(1 / FAILURE) (Hsu, Kakade and Zhang, arXiv:1110.2842).

A client that holds more than the nominal number of examples may go beyond it, by little: its gradients would have to
agree in direction. Its update is then scaled down, no more.
"""

import math
from typing import Final

from fedq.privacy.plan import DPPlan

FAILURE: Final = 1e-6


def longest_update(plan: DPPlan, *, lr: float, scalars: int, momentum: float = 0.0) -> float:
    """L2 norm that a client's update in one round exceeds with a chance of 2e-6 at most; `scalars` are trained."""
    weights = [sum(momentum**later for later in range(plan.steps - step)) for step in range(plan.steps)]
    squares, log = math.fsum(weight**2 for weight in weights), math.log(1 / FAILURE)
    mean = plan.divisor * math.fsum(weights)
    variance = plan.divisor * (1 - plan.sample_rate) * squares
    third = weights[0] * log / 3
    drawn = mean + third + math.sqrt(third**2 + 2 * variance * log)
    drawn = min(drawn, plan.nominal_examples * math.fsum(weights))
    deviation = plan.noise_multiplier * math.sqrt(squares)
    noise = deviation * (math.sqrt(scalars) + math.sqrt(2 * log))
    across = 2 * drawn * deviation * math.sqrt(2 * log)
    return lr * plan.clip_norm * math.sqrt(drawn**2 + noise**2 + across) / plan.divisor
