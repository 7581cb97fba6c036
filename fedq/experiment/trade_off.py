"""The noise that budgets need, as a table from public numbers alone. Knows configs and accountants; opens no data."""

import math
from collections.abc import Sequence
from dataclasses import replace

from fedq.config import Config, public
from fedq.config.client_level import protects_examples
from fedq.core.wording import plural, spent
from fedq.experiment.client_level import client_level_plan
from fedq.experiment.plans import epsilon_of_all_rounds, plan_of
from fedq.results.accounts import PlanRow


def trade_off(config: Config, budgets: Sequence[float]) -> list[PlanRow]:
    """The noise that each budget needs, for half the config's rounds, for its rounds, and for twice as many.

    For example-level DP, or for client-level DP where only that is on.
    """
    p = config.privacy
    own = p.target_epsilon if protects_examples(config) else p.client.target_epsilon
    rounds = sorted({max(1, config.rounds // 2), config.rounds, 2 * config.rounds})
    rows = []
    for budget in sorted({*budgets, *([own] if own is not None else [])}):
        found = {number: _noise(replace(config, rounds=number), budget) for number in rounds}
        noise, std = ({number: pair[i] for number, pair in found.items()} for i in (0, 1))
        rows.append(PlanRow(budget, noise, std))
    return rows


def _noise(config: Config, budget: float) -> tuple[float, float]:
    """(noise multiplier, std on a coordinate of a mean, in clip norms) for the budget; inf: no noise is enough."""
    p = config.privacy
    try:
        if protects_examples(config):
            plan = plan_of(
                replace(config, privacy=replace(p, target_epsilon=budget, noise_multiplier=None, budgets={}))
            )
            return plan.noise_multiplier, plan.noise_multiplier / plan.divisor
        client_plan = client_level_plan(
            replace(
                config,
                privacy=replace(p, client=replace(p.client, target_epsilon=budget, noise_multiplier=None)),
            )
        )
    except (ValueError, ArithmeticError):
        return math.inf, math.inf
    assert client_plan is not None
    return client_plan.noise_multiplier, client_plan.noise_multiplier / client_plan.cohort


def cost_summary(config: Config) -> dict[str, str]:
    """The cost of the config's run for each client: item -> text."""
    asked = f"{public.cohort_size(config)} of {plural(config.clients, 'client')} a round"
    cap = public.participation_cap(config)
    rounds = f"{config.rounds}, {asked}: any client takes part in at most {cap}"
    if not protects_examples(config):
        client_plan = client_level_plan(config)
        assert client_plan is not None
        return {
            "rounds": rounds
            if client_plan.sampling == "cyclic"
            else f"{config.rounds}, about {asked}, drawn in secret",
            "clip": f"{client_plan.clip_norm:g} on each decoded update, divided by {client_plan.cohort}",
            "noise": f"multiplier {client_plan.noise_multiplier:.4g}, added by the server",
            "cost": f"epsilon {spent(client_plan.epsilon(client_plan.charges))} of {client_plan.target_epsilon:g} "
            f"at delta {client_plan.delta:g} for each client, by the {client_plan.accountant} accountant",
        }
    plan = plan_of(config)
    return {
        "rounds": rounds,
        "steps": f"{plan.steps} noised steps each time, at sampling rate {plan.sample_rate:.4g}",
        "clip": f"{plan.clip_norm:g}, divided by {plan.divisor:g} (rate x {plan.nominal_examples} public examples)",
        "noise": f"multiplier {plan.noise_multiplier:.4g}, std {plan.noise_std:.4g} on each coordinate of a sum",
        "cost": f"epsilon {spent(epsilon_of_all_rounds(config, plan))} of {plan.target_epsilon:g} "
        f"at delta {plan.delta:g}, by the {plan.accountant} accountant",
        **{f"client {name}": _owner(config, budget) for name, budget in sorted(config.privacy.budgets.items())},
    }


def _owner(config: Config, budget: float) -> str:
    """The effect of an owner's own budget on its client."""
    target = config.privacy.target_epsilon
    if target is not None and budget >= target:
        return f"allows {budget:g}: held to the run's {target:g}, like the others"
    multiplier, _ = _noise(config, budget)
    return f"allows {budget:g}: " + (f"noise multiplier {multiplier:.4g}" if multiplier < math.inf else "out of reach")
