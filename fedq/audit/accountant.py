"""Epsilon by another accountant: Google's dp-accounting, `pip install fedq[audit]`. Knows mechanisms.

fedq's own accountant calibrates the noise, admits spends and computes the claim. If it has an error, then plan, ledger
and claim agree and are all wrong. So each is compared with the figures of another accountant.
"""

import importlib.util
import math
from collections.abc import Sequence

from fedq.audit.findings import Check
from fedq.privacy import AnyMechanism, DPPlan, Mechanism, PureDP

NOT_INSTALLED = "needs another accountant; pip install 'fedq[audit]'"
# Both accountants round up: fedq's by up to 0.4 % of epsilon, this one by its discretisation.
_TOLERANCE = 1.01
_MESH, _MANY_STEPS, _COARSE_MESH = 1e-3, 20_000, 1e-2  # discretisation intervals of a privacy loss


def available() -> bool:
    """Whether dp-accounting is installed."""
    return importlib.util.find_spec("dp_accounting") is not None


def epsilon_by_dp_accounting(mechanisms: Sequence[AnyMechanism], delta: float) -> float:
    """Epsilon at `delta` of all mechanisms together, from privacy loss distributions (add or remove one example)."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    steps: dict[tuple[float, float], int] = {}
    for mechanism in mechanisms:
        if isinstance(mechanism, Mechanism):
            key = (mechanism.noise_multiplier, mechanism.sample_rate)
            steps[key] = steps.get(key, 0) + mechanism.steps
    pure = math.fsum(m.epsilon for m in mechanisms if isinstance(m, PureDP))
    steps = {key: count for key, count in steps.items() if count}
    if not steps:
        return pure
    mesh = _COARSE_MESH if sum(steps.values()) > _MANY_STEPS else _MESH
    composed = [
        pld.from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=mesh).self_compose(count)
        for (noise, rate), count in steps.items()
    ]
    total = composed[0]
    for other in composed[1:]:
        total = total.compose(other)
    return pure + float(total.get_epsilon_for_delta(delta))


def why_target_not_checked(plan: DPPlan) -> str | None:
    """Why the target of a plan is not checked; None if it is checked."""
    if not math.isfinite(plan.target_epsilon):
        return "the config names no target epsilon"
    return None if available() else NOT_INSTALLED


def exceeds(epsilon: float, claimed: float) -> bool:
    """Whether an epsilon of this accountant refutes a claim of fedq."""
    return epsilon > claimed * _TOLERANCE + 1e-3


def target_check(plans: Sequence[DPPlan], *, rounds: int) -> Check | None:
    """Whether the noise of each plan meets its target over `rounds` rounds; None if no plan has a target."""
    targets = {plan: plan.target_epsilon for plan in plans if math.isfinite(plan.target_epsilon)}
    if not targets:
        return None
    wrong, nearest = "", (0.0, 0.0, 0.0)
    for plan, target in targets.items():
        spent = [plan.mechanism] * rounds + ([plan.evaluation] if plan.evaluation is not None else [])
        epsilon = epsilon_by_dp_accounting(spent, plan.delta)
        nearest = max(nearest, (epsilon / target, epsilon, target))
        if exceeds(epsilon, target):
            wrong = (
                f"noise {plan.noise_multiplier:.4g} costs epsilon {epsilon:.4g} in {rounds:,} rounds, not {target:g}"
            )
    return Check(
        "target",
        "the noise of each plan meets its target in all the rounds that a client may take part in",
        0.0 if wrong else 1.0,
        wrong or f"epsilon {nearest[1]:.4g} of {nearest[2]:g} by dp-accounting, in {rounds:,} rounds",
        chance=False,
    )
