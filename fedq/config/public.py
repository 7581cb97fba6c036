"""Public numbers of an experiment: clients, cohorts, participations and noised steps. Knows the schema alone."""

import math

from fedq.config.schema import Config


def identities(config: Config) -> list[str]:
    """The names of the clients, in the order of the partition's shards."""
    return list(config.names) or [str(i) for i in range(config.clients)]


def cohort_size(config: Config, *, clients: int | None = None) -> int:
    """Clients in a round: floor(fraction * clients), at least one."""
    return max(1, int(config.fraction * (config.clients if clients is None else clients) + 1e-9))


def participation_cap(config: Config) -> int:
    """Largest number of rounds of any one client under shuffled round-robin sampling."""
    return min(config.rounds, -(-config.rounds * cohort_size(config) // config.clients))


def rounds_asked(config: Config) -> int:
    """Largest number of rounds in which one client may be asked to train.

    It is all rounds where the server need not keep to equal cohorts: with privacy off, some clients may be missing.
    """
    round_robin = config.privacy.unit != "off" and config.privacy.client.sampling == "cyclic"
    return participation_cap(config) if round_robin else config.rounds


def steps_asked(config: Config) -> int | None:
    """Optimizer steps of one client in one round; None where they depend on its number of examples."""
    if config.privacy.unit in ("example", "both") and not math.isnan(sample_rate(config)):
        return dp_steps(config)
    return config.train.steps


def evaluation_due(config: Config, round: int) -> bool:
    """Whether the model is evaluated after this round: every `strategy.evaluate_every`, and in the last five."""
    return round % config.strategy.evaluate_every == 0 or round > config.rounds - 5


def nominal_examples(config: Config) -> int | None:
    """Public number of examples of every client, for the divisor of DP-SGD; None if the config has none."""
    if config.privacy.nominal_examples is not None:
        return config.privacy.nominal_examples
    published = config.data.get("nominal_examples")
    return None if published is None else max(1, int(published) // config.clients)


def sample_rate(config: Config) -> float:
    """Public Poisson sampling rate of DP-SGD; NaN where the nominal number of examples is not set."""
    if config.privacy.sample_rate is not None:
        return config.privacy.sample_rate
    return config.train.batch_size / float(nominal_examples(config) or math.nan)


def dp_steps(config: Config) -> int:
    """Public number of noised steps in one participation."""
    if config.train.steps is not None:
        return config.train.steps
    return max(1, round((config.train.epochs or 1.0) / sample_rate(config)))
