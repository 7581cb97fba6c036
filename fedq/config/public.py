"""The public numbers of an experiment: who takes part, how often, in how many noised steps. Knows the schema alone."""

import math
from typing import Final

from fedq.config.schema import Config

# Of any budget. Below, the accountants take minutes to find a noise; above, the number says nothing.
LEAST_EPSILON: Final = 0.05
MOST_EPSILON: Final = 1e4


def identities(config: Config) -> list[str]:
    """The names of the clients, in the order in which examples are dealt to them."""
    return list(config.names) or [str(i) for i in range(config.clients)]


def cohort_size(config: Config, *, clients: int | None = None) -> int:
    """Clients in a round: floor(fraction * clients), at least one."""
    return max(1, int(config.fraction * (config.clients if clients is None else clients) + 1e-9))


def participation_cap(config: Config) -> int:
    """Most rounds in which any one client takes part, under shuffle-and-deal sampling."""
    return min(config.rounds, -(-config.rounds * cohort_size(config) // config.clients))


def rounds_asked(config: Config) -> int:
    """Most rounds in which one client may be asked to train.

    All of them where nothing holds the server to its cohorts: with privacy off, fewer clients may come than are named.
    """
    in_turns = config.privacy.unit != "off" and config.privacy.client_sampling == "deal"
    return participation_cap(config) if in_turns else config.rounds


def steps_asked(config: Config) -> int | None:
    """Optimizer steps of one client in one round; None where they follow from how many examples it holds."""
    if config.privacy.unit in ("example", "both") and not math.isnan(sample_rate(config)):
        return dp_steps(config)
    return config.train.steps


def evaluation_due(config: Config, round: int) -> bool:
    """Whether the model is evaluated after this round: every so often, and always in the last five."""
    return round % config.strategy.evaluate_every == 0 or round > config.rounds - 5


def nominal_examples(config: Config) -> int | None:
    """Public number of examples that every client is taken to hold: the divisor of DP-SGD."""
    if config.privacy.nominal_examples is not None:
        return config.privacy.nominal_examples
    published = config.data.get("nominal_examples")
    return None if published is None else max(1, int(published) // config.clients)


def sample_rate(config: Config) -> float:
    """Public Poisson sampling rate of DP-SGD."""
    if config.privacy.sample_rate is not None:
        return config.privacy.sample_rate
    return config.train.batch_size / float(nominal_examples(config) or math.nan)


def dp_steps(config: Config) -> int:
    """Public number of noised steps in one participation."""
    if config.train.steps is not None:
        return config.train.steps
    return max(1, round((config.train.epochs or 1.0) / sample_rate(config)))
