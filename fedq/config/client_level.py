"""The unit of privacy, and rules about client-level DP. Knows the schema; not noise, ledgers or the server."""

from collections.abc import Iterator

from fedq.config import deltas
from fedq.config.problem import Problem
from fedq.config.schema import Config


def protects_examples(config: Config) -> bool:
    """Whether example-level DP is on: each client trains with DP-SGD, which protects examples from the server too."""
    return config.privacy.unit in ("example", "both")


def protects_clients(config: Config) -> bool:
    """Whether client-level DP is on: the trusted server adds the noise."""
    return config.privacy.unit in ("client", "both")


def epsilon_budget(config: Config) -> float | None:
    """The target of the epsilon that rounds report; None: privacy is off, or has no budget."""
    if protects_examples(config):
        return config.privacy.target_epsilon
    return config.privacy.client.target_epsilon if protects_clients(config) else None


def client_level_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with the options of client-level DP."""
    if not protects_clients(config):
        return
    p = config.privacy
    if p.client.target_epsilon is None and p.client.noise_multiplier is None:
        rule = "under client-level DP, a budget or a noise multiplier must be set"
        yield Problem("privacy.client.target_epsilon", None, rule, "Use privacy.client.target_epsilon=8")
    yield from deltas.delta_problems(
        "privacy.client.target_delta", p.client.target_delta, protected=config.clients, of="client"
    )
    if config.strategy.min_clients > 1:
        rule = "a skipped round would reveal who answered, so every round must take its noised step"
        yield Problem("strategy.min_clients", config.strategy.min_clients, rule, "Use strategy.min_clients=1")
    if config.downlink.kind == "delta":
        rule = (
            "changes are sent only after a first accepted update: a client could see from its message whether another "
            f"client's update was accepted, which no noise hides (privacy={p.unit})"
        )
        yield Problem("downlink.kind", "delta", rule, "Use downlink.kind=weights")
    if p.client.sampling == "poisson":
        yield from _poisson_problems(config)


def _poisson_problems(config: Config) -> Iterator[Problem]:
    key, fix = "privacy.client.sampling", "Use privacy.client.sampling=cyclic"
    if config.fraction == 1:
        yield Problem(key, "poisson", "with fraction=1 every client is in every round, so no client is sampled", fix)
    if protects_examples(config):
        rule = (
            "a client may be drawn in every round, and the noise on its examples is calibrated to fewer (privacy=both)"
        )
        yield Problem(key, "poisson", rule, fix)
