"""A bound on the length of a DP-SGD update, from public numbers alone; it may fail with a small probability.
Knows plans; not tensors.

With plain SGD an update is minus lr times a weighted sum of the noised gradients g_t of the round's S steps, where
momentum mu gives g_t the weight c_t = 1 + mu + ... + mu^(S-t) (without momentum 1). The bound has two parts, each of
which fails with probability `FAILURE`; the triangle inequality adds them:

- The clipped gradients. Each drawn example adds at most clip_norm, over the divisor q N. Bernstein's inequality
  bounds the number of drawn examples of N, weighted by c_t.
- The noise. Its sum has standard deviation s = sigma clip_norm / (q N) sqrt(sum c_t^2) in each of d coordinates, and
  the norm of d such values (Gaussian, or subgaussian as discrete Gaussian noise is) is at most s (sqrt(d) + sqrt(2 L))
  with L = ln(1 / FAILURE) (Hsu, Kakade and Zhang, arXiv:1110.2842).

A client with more than the nominal number of examples may exceed the bound, but only if its gradients point in nearly
one direction. The server then scales the update down and does nothing else.
"""

import math
from typing import Final

from fedq.privacy.plan import DPPlan

FAILURE: Final = 1e-6


def longest_update(plan: DPPlan, *, lr: float, scalars: int, momentum: float = 0.0) -> float:
    """L2 norm that one client's update of a round exceeds with probability 2e-6 at most.

    `lr`: client learning rate; `scalars`: number of trained values; `momentum`: of SGD.
    """
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
