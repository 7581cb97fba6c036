"""Client-level DP by the server: the plan that a config stands for, its mechanism, who is asked, its files.
Knows the config and the privacy room; not rounds or messages.
"""

import math
from pathlib import Path
from typing import Literal, cast

from fedq.codec import Layout
from fedq.config import Config, Problem
from fedq.config.client_level import protects_clients
from fedq.config.public import cohort_size, participation_cap
from fedq.core.randomness import key64
from fedq.experiment.ledgers import server_ledger_file
from fedq.privacy import ClientLevelMechanism, ClientLevelPlan, RandomSource, SecureRandom, SeededRandom, calibrate
from fedq.server.sampling import CyclicSampler, Sampler, SecretPoisson

SERVER_FILES = "server"  # a folder of the run: what stays with the server
EVIDENCE, REPLIES = "evidence.jsonl", "replies.jsonl"


def client_level_plan(config: Config) -> ClientLevelPlan | None:
    """Noise by the most rounds that count against one client; None where client-level DP is off.

    ValueError where the noise that was asked for costs more than the budget.
    """
    if not protects_clients(config):
        return None
    p, cohort = config.privacy, cohort_size(config)
    accountant = cast(Literal["prv", "rdp"], p.accountant)  # the rules have seen to it, and to the sampling
    sampling = cast(Literal["deal", "poisson"], p.client_sampling)
    charges = participation_cap(config) if sampling == "deal" else config.rounds
    noise = p.client_noise_multiplier
    if noise is None:
        assert p.client_target_epsilon is not None
        noise = calibrate(
            target_epsilon=p.client_target_epsilon,
            delta=p.client_target_delta,
            sample_rate=cohort / config.clients if sampling == "poisson" else 1.0,
            steps=charges,
            accountant=accountant,
        )
    plan = ClientLevelPlan(
        noise_multiplier=noise,
        clip_norm=p.client_clip_norm,
        cohort=cohort,
        clients=config.clients,
        charges=charges,
        sampling=sampling,
        quantile=p.client_quantile if p.client_clipping == "adaptive" else None,
        target_epsilon=math.inf if p.client_target_epsilon is None else p.client_target_epsilon,
        delta=p.client_target_delta,
        accountant=accountant,
        noise="gaussian" if p.noise == "gaussian" else "discrete",  # seeded is the source, not the kind
    )
    if (spent := plan.epsilon(charges)) > plan.target_epsilon:
        raise ValueError(
            f"costs a client epsilon {spent:.4g} in {charges} rounds, more than the target {plan.target_epsilon:g}; "
            "leave privacy.client_noise_multiplier out, or set privacy.client_target_epsilon=null"
        )
    return plan


def check_all_averaged(config: Config, layout: Layout, found: list[Problem]) -> None:
    """A problem where the model has arrays that each client keeps: what is delivered of them has no noise."""
    kept = not_averaged(layout)
    if protects_clients(config) and kept:
        rule = f"{kept[0]} is not averaged, so the server's noise does not cover it, and the model is delivered with it"
        found.append(Problem("model", config.model.get("_target_", "object"), rule, "Use GroupNorm for BatchNorm"))


def not_averaged(layout: Layout) -> list[str]:
    """Names of the arrays that stay with the clients."""
    return [segment.name for segment in layout.segments if segment.role == "local"]


def client_level_mechanism(
    config: Config, plan: ClientLevelPlan, folder: Path, data: str
) -> tuple[ClientLevelMechanism, Path]:
    """The mechanism of a run whose files lie in `folder`, and the folder of what stays with the server."""
    home = folder / SERVER_FILES
    mechanism = ClientLevelMechanism(
        plan,
        ledger=server_ledger_file(config, home),
        evidence=home / EVIDENCE,
        random=_random(config, "server noise"),
        data=data,
        run=folder.name,
    )
    return mechanism, home


def sampler(config: Config, plan: ClientLevelPlan | None, clients: list[str]) -> Sampler:
    """Who is asked in each round."""
    if plan is None or plan.sampling == "deal":
        return CyclicSampler(clients, seed=config.seed)
    return SecretPoisson(clients, rate=plan.sample_rate, random=_random(config, "server cohorts"))


def _random(config: Config, use: str) -> RandomSource:
    return SeededRandom(key64(config.seed, use)) if config.privacy.noise == "seeded" else SecureRandom()
