"""Each client's DP plan from the public numbers of a config: calibrates noise to the budget. Knows no data."""

import math
from typing import Any, Literal, cast

from fedq.config import Config, public
from fedq.config.client_level import protects_examples
from fedq.privacy.mechanisms import mechanism_name


def plan_of(config: Config, budget: float | None = None, delta: float | None = None) -> Any:
    """The `DPPlan` of a client whose owner allows `budget` (None: the run's target) at `delta` (None: the run's).

    None where clients add no noise. The stricter of the owner's and the run's values is used. Noise is calibrated to
    the cap on participations, not to their mean. ValueError or ArithmeticError where no noise is enough.
    """
    if not protects_examples(config):
        return None
    from fedq.privacy import DPPlan, PureDP, calibrate

    p = config.privacy
    accountant = cast(Literal["prv", "rdp"], p.accountant)  # the rules have checked it, and nominal_examples
    rate, steps, nominal = public.sample_rate(config), public.dp_steps(config), public.nominal_examples(config)
    assert nominal is not None
    delta = p.target_delta if delta is None else min(delta, p.target_delta)
    target = min(math.inf if p.target_epsilon is None else p.target_epsilon, math.inf if budget is None else budget)
    noise, evaluation = p.noise_multiplier, p.evaluation_epsilon if config.evaluate == "dp" else None
    counted = None if evaluation is None else PureDP(1.001 * evaluation)  # with a little room for round-off
    if noise is None or (budget is not None and target < math.inf):
        needed = calibrate(
            target_epsilon=target - (counted.epsilon if counted else 0.0),
            delta=delta,
            sample_rate=rate,
            steps=steps * public.participation_cap(config),
            accountant=accountant,
        )
        noise = needed if noise is None else max(noise, needed)
    return DPPlan(
        noise_multiplier=noise,
        clip_norm=p.clip_norm,
        sample_rate=rate,
        steps=steps,
        nominal_examples=nominal,
        target_epsilon=target,
        delta=delta,
        accountant=accountant,
        noise=mechanism_name(p.noise),
        evaluation_epsilon=evaluation,
    )


def epsilon_of_all_rounds(config: Config, plan: Any) -> float:
    """Epsilon of the most that one client may be asked for: the capped number of rounds, and an evaluation if any."""
    from fedq.privacy import epsilon

    counted = [plan.evaluation] if plan.evaluation is not None else []
    mechanisms = [plan.mechanism] * public.participation_cap(config) + counted
    return epsilon(mechanisms, plan.delta, accountant=plan.accountant)


def requested_epsilon(config: Config, plan: Any) -> float:
    """The epsilon that the run asks a data owner to accept: its target, or its cost if it has no target."""
    return float(plan.target_epsilon) if math.isfinite(plan.target_epsilon) else epsilon_of_all_rounds(config, plan)
