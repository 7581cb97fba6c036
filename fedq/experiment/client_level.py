"""Client-level DP at the server: plan, mechanism, client sampling and files, from a config.
Depends on the config and the privacy package; does not know rounds or messages.
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

SERVER_FILES = "server"  # folder in the run folder: files that stay with the server
EVIDENCE, REPLIES = "evidence.jsonl", "replies.jsonl"


def client_level_plan(config: Config) -> ClientLevelPlan | None:
    """The plan of client-level DP; None where it is off.

    Noise is calibrated to the largest number of rounds that count against one client. ValueError if the configured
    noise multiplier costs more than the budget.
    """
    if not protects_clients(config):
        return None
    p, cohort = config.privacy, cohort_size(config)
    accountant = cast(Literal["prv", "rdp"], p.accountant)  # the rules have checked it, and the sampling
    sampling = cast(Literal["cyclic", "poisson"], p.client.sampling)
    counted_rounds = participation_cap(config) if sampling == "cyclic" else config.rounds
    noise = p.client.noise_multiplier
    if noise is None:
        assert p.client.target_epsilon is not None
        noise = calibrate(
            target_epsilon=p.client.target_epsilon,
            delta=p.client.target_delta,
            sample_rate=cohort / config.clients if sampling == "poisson" else 1.0,
            steps=counted_rounds,
            accountant=accountant,
        )
    plan = ClientLevelPlan(
        noise_multiplier=noise,
        clip_norm=p.client.clip_norm,
        cohort=cohort,
        clients=config.clients,
        charges=counted_rounds,
        sampling=sampling,
        quantile=p.client.quantile if p.client.clipping == "adaptive" else None,
        target_epsilon=math.inf if p.client.target_epsilon is None else p.client.target_epsilon,
        delta=p.client.target_delta,
        accountant=accountant,
        noise="gaussian" if p.noise == "gaussian" else "discrete",  # `seeded` is a random source, no kind of noise
    )
    if (spent := plan.epsilon(counted_rounds)) > plan.target_epsilon:
        raise ValueError(
            f"costs a client epsilon {spent:.4g} in {counted_rounds} rounds, more than the target "
            f"{plan.target_epsilon:g}; leave privacy.client.noise_multiplier out, or set "
            "privacy.client.target_epsilon=null"
        )
    return plan


def check_all_averaged(config: Config, layout: Layout, found: list[Problem]) -> None:
    """Add a problem if the model has arrays that stay with the clients: they are in the final model without noise."""
    kept = not_averaged(layout)
    if protects_clients(config) and kept:
        rule = f"{kept[0]} is not averaged, so the server's noise does not cover it, and the model is delivered with it"
        found.append(Problem("model", config.model.get("_target_", "object"), rule, "Use GroupNorm for BatchNorm"))


def not_averaged(layout: Layout) -> list[str]:
    """Names of the arrays that are not averaged and stay with the clients."""
    return [segment.name for segment in layout.segments if segment.role == "local"]


def client_level_mechanism(
    config: Config, plan: ClientLevelPlan, folder: Path, data: str
) -> tuple[ClientLevelMechanism, Path]:
    """(mechanism, folder of the files that stay with the server) of the run in `folder`."""
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
    """The sampler of clients."""
    if plan is None or plan.sampling == "cyclic":
        return CyclicSampler(clients, seed=config.seed)
    return SecretPoisson(clients, rate=plan.sample_rate, random=_random(config, "server cohorts"))


def _random(config: Config, use: str) -> RandomSource:
    return SeededRandom(key64(config.seed, use)) if config.privacy.noise == "seeded" else SecureRandom()
