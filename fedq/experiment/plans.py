"""From the public numbers of a config to each client's plan: how much noise its budget needs. Knows no data."""

import math
from typing import Any, Literal, cast

from fedq.config import Config, public
from fedq.config.client_level import protects_examples


def plan_of(config: Config, budget: float | None = None, delta: float | None = None) -> Any:
    """The `DPPlan` of a client whose owner lets it spend `budget` (None: whatever the run aims at).

    None where the server adds the noise, or nobody does. The stricter side wins, in epsilon and in `delta` (None: the
    run's). Noise is calibrated to the cap on participations, not to their mean. ValueError or ArithmeticError where no
    noise is enough.
    """
    if not protects_examples(config):
        return None
    from fedq.privacy import DPPlan, PureDP, calibrate

    p = config.privacy
    accountant = cast(Literal["prv", "rdp"], p.accountant)  # the rules have seen to it, and to nominal
    rate, steps, nominal = public.sample_rate(config), public.dp_steps(config), public.nominal_examples(config)
    assert nominal is not None
    delta = p.target_delta if delta is None else min(delta, p.target_delta)
    target = min(math.inf if p.target_epsilon is None else p.target_epsilon, math.inf if budget is None else budget)
    noise, evaluation = p.noise_multiplier, p.evaluation_epsilon if config.evaluate == "dp" else None
    counted = None if evaluation is None else PureDP(1.001 * evaluation)  # and a little room for round-off
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
        noise="gaussian" if p.noise == "gaussian" else "discrete",  # seeded is the source, not the kind
        evaluation_epsilon=evaluation,
    )


def whole_cost(config: Config, plan: Any) -> float:
    """Epsilon of all that one client may be asked for: as many rounds as the cap allows, and an evaluation if any."""
    from fedq.privacy import epsilon

    counted = [plan.evaluation] if plan.evaluation is not None else []
    mechanisms = [plan.mechanism] * public.participation_cap(config) + counted
    return epsilon(mechanisms, plan.delta, accountant=plan.accountant)


def claimed(config: Config, plan: Any) -> float:
    """What the run asks a data owner to accept: its budget, or what it will cost where it names none."""
    return float(plan.target_epsilon) if math.isfinite(plan.target_epsilon) else whole_cost(config, plan)
