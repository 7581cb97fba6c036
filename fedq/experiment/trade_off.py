"""What budgets cost in noise: a table from public numbers alone. Knows configs and accountants; opens no data."""

import math
from collections.abc import Sequence
from dataclasses import replace

from fedq.config import Config, public
from fedq.experiment.plans import plan_of, whole_cost
from fedq.results.accounts import PlanRow
from fedq.results.wording import plural, spent


def trade_off(config: Config, budgets: Sequence[float]) -> list[PlanRow]:
    """The noise that each budget needs, in half as many rounds as the config's, in as many, and in twice as many."""
    own = config.privacy.target_epsilon
    wanted = sorted({*budgets, *([own] if own is not None else [])})
    rounds = sorted({max(1, config.rounds // 2), config.rounds, 2 * config.rounds})
    rows = []
    for budget in wanted:
        noise, loud = {}, {}
        for number in rounds:
            asked = replace(config.privacy, target_epsilon=budget, noise_multiplier=None, budgets={})
            try:
                plan = plan_of(replace(config, rounds=number, privacy=asked))
            except (ValueError, ArithmeticError):
                noise[number] = loud[number] = math.inf
                continue
            noise[number] = plan.noise_multiplier
            loud[number] = plan.noise_multiplier / plan.divisor
        rows.append(PlanRow(budget, noise, loud))
    return rows


def facts(config: Config) -> dict[str, str]:
    """What the run that the config asks for will cost each client."""
    plan, cap = plan_of(config), public.participation_cap(config)
    asked = f"{public.cohort_size(config)} of {plural(config.clients, 'client')} a round"
    return {
        "rounds": f"{config.rounds}, {asked}: any client takes part in at most {cap}",
        "steps": f"{plan.steps} noised steps each time, at sampling rate {plan.sample_rate:.4g}",
        "clip": f"{plan.clip_norm:g}, divided by {plan.divisor:g} (rate x {plan.nominal_examples} public examples)",
        "noise": f"multiplier {plan.noise_multiplier:.4g}, std {plan.noise_std:.4g} on each coordinate of a sum",
        "cost": f"epsilon {spent(whole_cost(config, plan))} of {plan.target_epsilon:g} at delta {plan.delta:g}, "
        f"by the {plan.accountant} accountant",
    }
