"""Rules about DP-SGD on the clients. Knows the schema and public numbers; not noise, ledgers or data."""

from collections.abc import Iterator

from fedq.config.client_level import protects_examples
from fedq.config.deltas import delta_problems
from fedq.config.problem import Problem
from fedq.config.public import dp_steps, nominal_examples, sample_rate
from fedq.config.schema import Config
from fedq.core.choices import AUGMENTATIONS


def example_problems(config: Config) -> Iterator[Problem]:
    """What is wrong with the options of example-level DP."""
    train, privacy, quant = config.train, config.privacy, config.quant
    if not protects_examples(config):
        return
    if not privacy.augment or not set(privacy.augment) <= set(AUGMENTATIONS):
        rule = f"must be one or more of {', '.join(AUGMENTATIONS)}"
        yield Problem("privacy.augment", list(privacy.augment), rule, "Use privacy.augment=[flip,shift]")
    if privacy.target_epsilon is None and privacy.noise_multiplier is None:
        yield Problem(
            "privacy.target_epsilon",
            None,
            "with privacy on, a budget or a noise multiplier must be set",
            "Use privacy.target_epsilon=8",
        )
    if quant.name != "off" and quant.activations == "observed":
        yield Problem(
            "quant.activations",
            "observed",
            "observed ranges are not covered by DP-SGD (privacy=example)",
            "Use quant.activations=fixed or learned",
        )
    if quant.name != "off" and quant.weight_rounding == "stochastic":
        yield Problem(
            "quant.weight_rounding",
            "stochastic",
            "weights are rounded again for each microbatch: one more example moves others to another one, and so "
            "changes a sum by more than its own bound (privacy=example)",
            "Use quant.weight_rounding=nearest",
        )
    if nominal_examples(config) is None:
        yield Problem(
            "privacy.nominal_examples",
            None,
            "DP divides by a public number of examples of each client, never by the true one, and the data has none",
            "Use privacy.nominal_examples=N with a public guess",
        )
    elif privacy.sample_rate is None and sample_rate(config) > 1:
        yield Problem(
            "train.batch_size",
            train.batch_size,
            f"the expected batch is larger than the {nominal_examples(config)} examples that a client is taken to hold",
            f"Use train.batch_size={nominal_examples(config)} or less",
        )
    elif dp_steps(config) > 1_000_000:
        rule = f"gives {dp_steps(config):,} noised steps in a round, at most 1,000,000 are allowed"
        yield Problem("privacy.sample_rate", sample_rate(config), rule, "Use a larger rate, or set train.steps")
    yield from delta_problems(
        "privacy.target_delta", privacy.target_delta, protected=nominal_examples(config) or 1, of="nominal example"
    )
    if train.clip_grad is not None:
        yield Problem(
            "train.clip_grad",
            train.clip_grad,
            "under DP the bound on each example's gradient is privacy.clip_norm",
            "Use train.clip_grad=null",
        )
